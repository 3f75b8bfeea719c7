"""Many users are recommended to in little memory: nowhere are there users x items numbers."""

import subprocess
import sys
import textwrap

import pyarrow.parquet
import pytest

from recplug.adapters.recbole import run

ITEMS, K = 3000, 5
SETTINGS = {
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "n_heads": 1,
    "MAX_ITEM_LIST_LENGTH": 4,
    "train_batch_size": 2048,
    "epochs": 1,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "use_gpu": False,
    "show_progress": False,
}
SCRIPT = """
    import sys
    from pathlib import Path
    from recplug.adapters.recbole import load

    def memory(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    directory, users, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    loaded = load(directory)
    histories = {f"n{user}": [f"i{(user * 7 + place) % 3000}" for place in range(3)] for user in range(users)}
    loaded.recommend(histories={"one": ["i1"]}, k=5).save(target)  # what a first call loads once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    loaded.recommend(histories=histories, k=5).save(target)
    print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_users_by_items_are_never_held(tmp_path):
    users = 100_000
    folder = tmp_path / "data" / "wide"
    folder.mkdir(parents=True)
    rows = [f"u{at // 10}\ti{at % ITEMS}\t{at}" for at in range(2 * ITEMS)]
    (folder / "wide.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    run("SASRec", "wide", "", SETTINGS, data_path=tmp_path / "data", output_dir=tmp_path / "run")
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), tmp_path / "run", str(users), tmp_path / "best.parquet"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    grown = int(ended.stdout.split()[-1])
    print(
        f"{users:,} users, {ITEMS:,} items: {grown / 2**20:.0f} MiB more; their scores are {users * ITEMS / 2**18:.0f}"
    )
    assert grown < users * ITEMS * 4 / 2
    file = pyarrow.parquet.ParquetFile(tmp_path / "best.parquet")
    assert file.metadata.num_rows == users * K
