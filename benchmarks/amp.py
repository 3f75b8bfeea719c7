"""What mixed precision saves on a GPU: seconds and memory of an epoch, beside single precision.

    python benchmarks/amp.py                                      # SASRec and LightGCN, bare and with every plugin
    python benchmarks/amp.py --plugins none,prism --epochs 3 --dataset amazon-beauty
    python benchmarks/amp.py --device cpu --plugins none,ssr      # seconds alone; says little of a GPU

Each cell is a whole run of RecBole's trainer: the median of `train_seconds` after the first epoch, the most that CUDA's
allocator held, and the best validation score. float16 trains with RecBole's `enable_scaler`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from recplug.adapters.recbole import run
from recplug.plugins import available

KINDS = {
    "fp32": {},
    "bf16": {"enable_amp": True, "amp_dtype": "bf16"},
    "fp16": {"enable_amp": True, "amp_dtype": "fp16", "enable_scaler": True},
}


def cell(host: str, plugin: str, kind: str, options: argparse.Namespace, folder: Path) -> tuple[float, int, float]:
    """Seconds, bytes and validation score of one run."""
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    config = {
        "epochs": options.epochs,
        "use_gpu": on_gpu,
        "show_progress": False,
        "state": "ERROR",
        "fast_propagation": True,
    }
    config |= KINDS[kind]
    config |= {} if on_gpu else {"gpu_id": ""}
    found = run(host, options.dataset, plugin, config, data_path=options.data_path, output_dir=folder)
    lines = (folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train_seconds")
    seconds = statistics.median(float(line.split(",")[column]) for line in lines[2:] or lines[1:])
    return seconds, found.result["peak_memory_bytes"] if on_gpu else 0, found.best_valid_score


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="SASRec,LightGCN")
    parser.add_argument("--plugins", default=",".join(["none", *sorted(available())]))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--dataset", default="amazon-scientific")
    parser.add_argument("--data_path")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here, so there is nothing to measure; --device cpu gives seconds alone")
    what = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{what}, torch {torch.__version__}, {options.dataset}, {options.epochs} epochs")
    print(f"{'':<22}{'':<6}{'s/epoch':>9}{'x fp32':>8}{'MiB':>9}{'x fp32':>8}{'validation':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for host in options.hosts.split(","):
            for plugin in options.plugins.split(","):
                first = None
                for kind in options.kinds.split(","):
                    name = "" if plugin == "none" else plugin
                    seconds, size, score = cell(host, name, kind, options, Path(folder) / f"{host}-{plugin}-{kind}")
                    first = first or (seconds, size)
                    memory = f"{size / 2**20:9.0f}{size / first[1]:8.2f}" if size else f"{'-':>9}{'-':>8}"
                    print(f"{host} + {plugin:<12}{kind:<6}{seconds:9.2f}{seconds / first[0]:8.2f}{memory}{score:12.4f}")


if __name__ == "__main__":
    main()
