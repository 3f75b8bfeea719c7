"""``factors induce`` and ``assign``, as commands, against a server on loopback."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from recplug.adapters.cli.factors import labelling
from recplug.adapters.factors import FactorSchema, FactorTable

RECPLUG = Path(sys.executable).with_name("recplug")
ITEMS = 45
MATERIALS, COLOURS = ("wood", "steel", "glass"), ("red", "blue", "grün")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """``data/shop`` with titles that tell material and colour."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    rows = [f"i{i}\tthing {i} {MATERIALS[i % 3]} {COLOURS[i // 3 % 3]}\tsecret-{i}" for i in range(ITEMS)]
    (folder / "shop.item").write_text("\n".join(("item_id:token\ttitle:token_seq\tseller:token", *rows)), "utf-8")
    bought = [f"u{u}\ti{(u * 7 + k) % ITEMS}\t{k}" for u in range(20) for k in range(5)]
    (folder / "shop.inter").write_text("\n".join(("user_id:token\titem_id:token\ttimestamp:float", *bought)))
    return folder


@pytest.fixture
def factors(recplug_cli, chat_server):
    """``factors("assign", ...)`` on the loopback server, with what the option list usually holds."""

    def run(name, *words, llm=("--llm", "openai:oracle-1")):
        where = ["--dataset", "shop", "--data_path", "data"]
        return recplug_cli("factors", name, *where, *llm, "--base_url", chat_server.url, *words)

    return run


@pytest.fixture
def labelled(shop, schema):
    """The schema beside the data."""
    schema.save(shop / "shop.factors.json")
    return shop / "shop.factors.json"


def requests(server):
    return list(server.seen)


def test_assign_labels_every_item_and_says_what_it_cost(factors, chat_server, labelled):
    ended = factors("assign", "--price_in", "2.5", "--price_out", "10")
    assert (ended.code, ended.err) == (0, "")
    table = FactorTable.load(labelled)
    for place, token in enumerate(table.tokens):
        number = int(token[1:])
        assert table.values["material"][place] == (MATERIALS[number % 3],)
        assert table.values["colour"][place] == (COLOURS[number // 3 % 3],)
    assert table.values["use"] == ((),) * ITEMS
    assert len(requests(chat_server)) == 5
    kept = labelled.with_name("shop.factors.answers.sqlite")
    assert kept.is_file()
    assert str(kept.name) in ended.out
    assert "45 items; read of them: title" in ended.out
    # By the server's own count.
    assert "5 calls (5 requests), 500 tokens read, 250 written, 0.00 USD" in ended.out
    assert "45 items (45 ok)" in ended.out


def test_only_allowed_columns_leave(factors, chat_server, labelled):
    factors("assign", "--key_env", "OPENAI_API_KEY")
    sent = json.dumps([seen.body for seen in chat_server.seen])
    assert "secret-" not in sent
    assert '"u1' not in sent
    assert not [token for token in ("i0", "i44") if f'"{token}"' in sent]
    key = os.environ["OPENAI_API_KEY"].encode()
    assert all(seen.headers["authorization"] == f"Bearer {key.decode()}" for seen in chat_server.seen)
    assert not [file for file in labelled.parent.iterdir() if key in file.read_bytes()]


def test_a_second_run_asks_nothing(factors, chat_server, labelled, refused):
    first = factors("assign", "--batch", "20")
    table = labelled.with_suffix(".parquet").read_bytes()
    calls = len(chat_server.seen)
    assert "exists; add --overwrite" in refused(factors("assign"))
    again = factors("assign", "--overwrite", "--batch", "7")
    assert (first.code, again.code) == (0, 0)
    assert len(chat_server.seen) == calls
    assert "0 calls" in again.out
    assert labelled.with_suffix(".parquet").read_bytes() == table


def test_failures_are_counted_and_retried_on_demand(factors, chat_server, labelled):
    chat_server.plan = lambda seen: "wrong enum" if any("thing 4 " in text for text in seen.texts) else "ok"
    chat_server.answer = lambda seen: json.dumps(
        {
            "items": sorted(
                (chat_server.row(item) for item in seen.items), key=lambda r: "thing 4 " not in text_of(r, seen)
            )
        }
    )
    ended = factors("assign")
    told = "1 labels failed or were refused, and are unknown"
    assert told in ended.out
    chat_server.plan = lambda seen: "ok"
    assert told in factors("assign", "--overwrite").out
    again = factors("assign", "--overwrite", "--retry_failed").out
    assert "45 items (45 ok)" in again
    assert "labels failed" not in again


def text_of(row, seen):
    return next(" ".join(item["content"].values()) for item in seen.items if item["index"] == row["index"])


def test_reask_reports_agreement(factors, chat_server, labelled):
    ended = factors("assign", "--reask", "10")
    assert "asked again, material: 100.0% of 10 agree, kappa 1.00" in ended.out
    second = FactorTable.load(labelled.with_name("shop.reask.factors.json"))
    assert len(second.tokens) == 10
    assert sum(len(seen.items) == 1 for seen in requests(chat_server)) == 10


def test_dry_run_asks_nobody_and_writes_nothing(factors, chat_server, labelled):
    before = sorted(labelled.parent.iterdir())
    ended = factors("assign", "--dry_run", "--price_in", "2.5", "--price_out", "10", llm=())
    assert ended.code == 0
    assert "labelling: 5 calls" in ended.out
    assert "USD at 2.5 / 10" in ended.out
    more = factors("induce", "--dry_run", llm=())
    assert "same factors: 1 calls" in more.out
    assert chat_server.seen == []
    assert sorted(labelled.parent.iterdir()) == before


def test_above_its_cost_it_asks_first(factors, chat_server, labelled, refused):
    prices = ("--price_in", "1000", "--price_out", "1000", "--max_cost", "0.5")
    line = refused(factors("assign", *prices))
    assert "more than --max_cost 0.5; add --yes" in line
    assert chat_server.seen == []
    assert "--price_in and --price_out" in refused(factors("assign", "--max_cost", "1"))
    assert factors("assign", *prices, "--yes").code == 0


def test_the_token_budget_stops_and_the_same_command_goes_on(factors, chat_server, labelled, refused):
    line = refused(factors("assign", "--max_tokens_total", "1500", "--concurrency", "1"))
    assert "budget of 1,500 tokens" in line
    assert not labelled.with_suffix(".parquet").exists()
    done = len(chat_server.asked)
    assert 0 < done < ITEMS
    assert factors("assign").code == 0
    assert len(chat_server.asked) == len(set(chat_server.asked)) == ITEMS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("assign", "--limit", "3"), "no factor schema"),
        (("assign", "--columns", "titel"), "did you mean 'title'"),
        (("assign", "--output", "x.json"), "does not end in .factors.json"),
        (("assign", "--images", "nowhere"), "no folder nowhere"),
        (("induce", "--batch", "0"), "batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_input_is_one_line(factors, shop, schema, refused, words, message):
    if "--limit" not in words:
        schema.save(shop / "shop.factors.json")
    assert message in refused(factors(*words))


def test_what_a_person_made_stays(factors, recplug_cli, chat_server, labelled, refused, tmp_path):
    factors("assign")
    table = tmp_path / "mine.tsv"
    where = ("--dataset", "shop", "--data_path", "data")
    recplug_cli("factors", "inspect", *where, "--tsv", str(table))
    lines = table.read_text().splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("i7\t"))
    lines[place] = "i7\tglass\tred\ttravel\toverride"
    table.write_text("\n".join(lines) + "\n")
    again = ("--schema", str(labelled), "--overwrite")
    assert recplug_cli("factors", "import", "--from", "tsv", str(table), *where, *again).code == 0

    def mine():
        now = FactorTable.load(labelled)
        return {name: column[now.tokens.index("i7")] for name, column in now.values.items()}, now.status.count(
            "override"
        )

    kept = mine()
    assert kept == ({"material": ("glass",), "colour": ("red",), "use": ("travel",)}, 1)
    assert "1 override" in factors("assign", "--overwrite").out
    assert mine() == kept
    factors("assign", "--overwrite", "--limit", "3")
    assert mine() == kept
    schema = labelled.read_text("utf-8")
    for words in (("induce", "--overwrite"), ("import", "--from", "columns", "--columns", "title", "--overwrite")):
        line = refused(recplug_cli("factors", words[0], *where, *words[1:]))
        assert "corrected by hand, such as 'i7'" in line
    labelled.write_text(schema.replace('"name": "travel"', '"name": "trips"'), "utf-8")
    assert "would be lost: item 'i7' has the use 'travel'" in refused(factors("assign", "--overwrite"))
    labelled.write_text(schema, "utf-8")
    assert mine() == kept


def test_captions_become_a_column(factors, chat_server, shop, refused):
    pictures = shop.parent / "pictures"
    pictures.mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "i3.png")
    chat_server.answer = lambda seen: "A black square."
    words = ("caption", "--images", str(pictures))
    assert "1 of 1 pictures in the column caption" in factors(*words).out
    lines = (shop / "shop.item").read_text("utf-8").splitlines()
    assert lines[0] == "item_id:token\ttitle:token_seq\tseller:token\tcaption:token_seq"
    assert lines[4].endswith("\tsecret-3\tA black square.")
    assert "add --overwrite" in refused(factors(*words))
    assert "0 calls" in factors(*words, "--overwrite").out
    assert (shop / "shop.item").read_text("utf-8").splitlines() == lines
    assert "give --images DIR" in refused(factors("caption"))


def test_no_model_is_told(factors, labelled, refused):
    assert "no model; give --llm" in refused(factors("assign", llm=()))
    assert "did you mean 'openai'" in refused(factors("assign", llm=("--llm", "opnai:x")))


def test_induce_writes_a_schema_that_assign_takes(factors, chat_server, shop, refused):
    chat_server.answer = oracle(chat_server)
    ended = factors("induce", "--factors", "2")
    assert ended.code == 0, ended.err
    schema = FactorSchema.load(shop / "shop.factors.json")
    assert {spec.name: spec.names for spec in schema.factors} == {
        "material": (*MATERIALS, "other"), "color": (*COLOURS, "other")
    }  # fmt: skip
    assert schema.provenance["dataset"] == "shop"
    assert "2 factors, 8 values" in ended.out
    assert "exists; add --overwrite" in refused(factors("induce"))
    chat_server.schema = schema
    assert factors("assign").code == 0
    table = FactorTable.load(shop / "shop.factors.json")
    assert table.values["color"][3] == (COLOURS[1],)
    calls = len(chat_server.seen)
    again = factors("induce", "--factors", "2", "--overwrite")
    assert "0 calls" in again.out
    assert "made with another schema" in again.out
    assert len(chat_server.seen) == calls


def oracle(server):
    """Answers to all that an induction asks about these products."""

    def answer(seen):
        form = seen.body["response_format"]["json_schema"]
        text = seen.body["messages"][-1]["content"]
        rows = [json.loads(line) for line in text.splitlines() if line.startswith('{"index"')]
        if form["name"] == "factor_proposals":
            named = ("Materials", "Colour")
            return json.dumps({"factors": [{"name": n, "definition": n, "examples": []} for n in named]})
        if form["name"] == "same_factors":
            return json.dumps({"factors": [{"index": row["index"], "same_as": row["index"]} for row in rows]})
        if form["name"] == "factor_values":
            order = [*MATERIALS, *COLOURS]
            rows.sort(key=lambda row: order.index(row["word"]))
            values = [{"name": r["word"], "definition": "", "found": [r["index"]]} for r in rows]
            return json.dumps({"values": values})
        found = []
        for row in rows:
            words = row["content"]["title"].split()
            found.append({"index": row["index"], "material": words[2], "color": words[3]})
        keys = form["schema"]["properties"]["items"]["items"]["properties"]
        return json.dumps({"items": [{key: row[key] for key in keys} for row in found]})

    return answer


INTERRUPT = pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="ctrl-c")  # waits for a request under way


@pytest.mark.parametrize("how", [INTERRUPT, pytest.param(signal.SIGKILL, id="kill")])
def test_interrupted_it_goes_on_where_it_was(chat_server, factors, labelled, tmp_path, how):
    """Another process, which is really interrupted while the server keeps it waiting."""
    chat_server.plan = lambda seen: "stall" if len(chat_server.seen) >= 2 else "ok"
    words = ["factors", "assign", "--dataset", "shop", "--data_path", "data", "--llm", "openai:oracle-1"]
    words += ["--base_url", chat_server.url, "--concurrency", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [RECPLUG, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background jobs ignore the signal, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    chat_server.wait_for(3)  # two answers, and one that never comes
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    kept = labelled.with_name("shop.factors.answers.sqlite")
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.count("\n") == 1, err
        assert err.startswith("interrupted; ")
        assert kept.name in err
        assert "2 calls" in out
    else:
        assert process.returncode == -signal.SIGKILL
    assert not labelled.with_suffix(".parquet").exists()
    with closing(sqlite3.connect(kept)) as log:
        assert log.execute("SELECT count(*) FROM entries WHERE status = 'ok'").fetchone() == (20 * 3,)
    answered = [text for seen in chat_server.seen[:2] for text in seen.texts]
    chat_server.seen.clear()
    chat_server.plan = lambda seen: "ok"
    assert factors("assign").code == 0
    assert not set(answered) & set(chat_server.asked)
    assert len(chat_server.asked) == ITEMS - 20


def test_every_option_is_explained_and_help_loads_no_heavy_library():
    for function in (labelling.induce, labelling.assign, labelling.caption):
        for name, hint in function.__annotations__.items():
            assert hint.__metadata__[0].help, name
    code = (
        "import sys\nfrom recplug.adapters.cli.main import main\n"
        "try: main(['factors', 'assign', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pandas', 'numpy', 'openai', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dry_run" in done.stdout


def test_the_schema_of_a_bundled_set_is_found_where_it_lies(recplug_cli):
    ended = recplug_cli("factors", "assign", "--dataset", "amazon-scientific", "--dry_run")
    assert (ended.code, ended.err) == (0, "")
    assert "labelling: 158 calls" in ended.out  # as docs/factors.md says
