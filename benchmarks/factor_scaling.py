"""How factor propagation grows with the catalogue: group means beside edges of equal values and dense graphs.

    OMP_NUM_THREADS=1 python benchmarks/factor_scaling.py --plot docs/images/mars-scaling.png
    python benchmarks/factor_scaling.py --items 1000 10000 --limit_gb 2 --threads 4

All three compute the same sum over factors, sum_k w_k D^-1/2 A_k D^-1/2 X, forward and backward to X and w: 10 factors
of 20 values drawn uniformly, width 64, float32. `group means` is recplug.plugins.mars.groups; `edges` holds A_k as the
equations read, an edge for each pair of equal values, in compressed rows (float32, int32) with their symmetry known;
`dense` holds N x N. Every case runs in a process of its own (Linux with glibc). Seconds are the processor's, of all
threads, in the fastest step: cases do not take turns, and others' load must not count. Memory is the peak that
the graph and the steps add to a process that already holds X and w, without what building takes for a moment. A case
whose matrices alone would pass --limit_gb is not run, and what they need is printed in its place.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.groups import Groups
from recplug.plugins.nn import Adjacency

FACTORS, VALUES, WIDTH = 10, 20, 64
METHODS = ("group means", "edges", "dense")
FIT_FROM = 3000  # below, the fixed cost of a call shows
LEAST_SECONDS = 1.0  # of steps


def matrix_bytes(method: str, n: int) -> float:
    """What the matrices alone need; the labels for group means."""
    return {
        "group means": 12.0 * n * FACTORS,
        "edges": 8.0 * FACTORS * n * n / VALUES,
        "dense": 4.0 * FACTORS * n * n,
    }[method]


# -- the three ways


def group_means(labels: torch.Tensor) -> Callable:
    n = len(labels) + 1
    factors = tuple(Factor(f"factor {k}", tuple(f"value {v}" for v in range(VALUES))) for k in range(FACTORS))
    items = torch.arange(1, n).repeat_interleave(FACTORS)
    values = (labels + VALUES * torch.arange(FACTORS)).reshape(-1)
    groups = Groups(FactorProfiles(factors, items, values, n), n_rows=n)
    return lambda x, weights: groups.mix(groups.means(x), weights)


def equal_values(label: torch.Tensor) -> Adjacency:
    """One factor's normalised graph ``[n, n]``; row 0 is padding."""
    order = torch.argsort(label, stable=True).int() + 1  # items, group after group
    size = torch.bincount(label, minlength=VALUES)
    begin = size.cumsum(0) - size
    ends = torch.cat([torch.zeros(2, dtype=torch.int64), size[label].cumsum(0)]).int()  # [n + 1]
    shift = (begin[label] - ends[1:-1]).int()
    place = torch.repeat_interleave(shift, size[label]) + torch.arange(int(ends[-1]), dtype=torch.int32)
    values = torch.repeat_interleave(1.0 / size[label], size[label])
    n = len(label) + 1
    return Adjacency(ends, order[place], values, (n, n), symmetric=True)


def by_matrices(matrices: list) -> Callable:
    return lambda x, weights: sum(weights[:, k : k + 1] * (matrix @ x) for k, matrix in enumerate(matrices))


def build(method: str, labels: torch.Tensor) -> Callable:
    if method == "group means":
        return group_means(labels)
    graphs = (equal_values(labels[:, k].contiguous()) for k in range(FACTORS))
    return by_matrices([graph if method == "edges" else graph.dense() for graph in graphs])


# -- one case


def resident(key: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def settle() -> None:
    """Give freed memory back, and begin a new peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(method: str, n: int, repeats: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(VALUES, (200, FACTORS), generator=generator)
    inputs = (torch.randn(201, width, requires_grad=True) for width in (WIDTH, FACTORS))
    step(build(method, small), *inputs)  # loads libraries
    labels = torch.randint(VALUES, (n - 1, FACTORS), generator=generator)
    x = torch.randn(n, WIDTH, generator=generator).requires_grad_()
    weights = torch.rand(n, FACTORS, generator=generator).softmax(1).requires_grad_()
    settle()
    before = resident("VmRSS")
    propagate = build(method, labels)
    settle()
    taken = []
    while len(taken) <= repeats or sum(taken) < LEAST_SECONDS:
        begun = time.process_time()
        result = step(propagate, x, weights)
        taken.append(time.process_time() - begun)
    return {
        "seconds": min(taken[1:]),
        "bytes": resident("VmHWM") - before,
        "check": [float(tensor.detach().double().norm()) for tensor in (result, x.grad, weights.grad)],
    }


def step(propagate: Callable, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    x.grad = weights.grad = None
    result = propagate(x, weights)
    result.backward(result.detach())
    return result


# -- all cases


def measure_all(sizes: list[int], arguments: argparse.Namespace) -> dict[str, dict[int, dict]]:
    """By method and size; a case beyond the limit is left out."""
    found: dict[str, dict[int, dict]] = {method: {} for method in METHODS}
    for n in sizes:
        for method in METHODS:
            if matrix_bytes(method, n) > arguments.limit_gb * 1e9:
                continue
            command = [sys.executable, __file__, "--only", method, "--items", str(n)]
            command += ["--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{method} at {n} ended with {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
            found[method][n] = json.loads(run.stdout.splitlines()[-1])
            truth = found[METHODS[0]][n]["check"]
            if not np.allclose(found[method][n]["check"], truth, rtol=1e-4):
                sys.exit(f"{method} at {n} computes something else: {found[method][n]['check']}, not {truth}")
    return found


def slope(points: dict[int, dict], key: str) -> float | None:
    """The power of N with which it grows, by least squares in logarithms; None for fewer than three sizes."""
    sizes = [n for n in points if n >= FIT_FROM]
    if len(sizes) < 3:
        return None
    return float(np.polyfit(np.log(sizes), np.log([points[n][key] for n in sizes]), 1)[0])


def size_of(count: float) -> str:
    power = min(4, max(0, int(np.log10(count)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def table(sizes: list[int], found: dict[str, dict[int, dict]]) -> str:
    lines = ["| items | " + " | ".join(f"{method}, ms | memory" for method in METHODS) + " |"]
    lines.append("|--:" * (1 + 2 * len(METHODS)) + "|")
    for n in sizes:
        cells = [f"{n:,}"]
        for method in METHODS:
            point = found[method].get(n)
            if point is None:
                cells += ["not run", f"needs {size_of(matrix_bytes(method, n))}"]
            else:
                cells += [f"{1000 * point['seconds']:,.{1 if point['seconds'] < 0.1 else 0}f}", size_of(point["bytes"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(sizes: list[int], found: dict[str, dict[int, dict]], limit_gb: float, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, (time_axis, memory_axis) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for method, marker, colour in zip(METHODS, "os^", ("tab:blue", "tab:orange", "tab:grey"), strict=True):
        points = found[method]
        for axis, key in ((time_axis, "seconds"), (memory_axis, "bytes")):
            power = slope(points, key)
            label = method if power is None else f"{method}: grows as N^{power:.2f}"
            axis.loglog(list(points), [point[key] for point in points.values()], marker, ls="-", c=colour, label=label)
        rest = [n for n in sizes if n not in points]
        if rest:
            last = [max(points), *rest] if points else rest
            memory_axis.loglog(last, [matrix_bytes(method, n) for n in last], ls=":", c=colour)
    memory_axis.plot([], [], ls=":", c="black", label="computed, not run")
    memory_axis.axhline(limit_gb * 1e9, lw=0.8, c="tab:red", label=f"limit of this run, {limit_gb:g} GB")
    time_axis.set_title("forward and backward, one step")
    time_axis.set_ylabel("processor seconds")
    memory_axis.set_title("peak memory added")
    memory_axis.set_ylabel("bytes")
    memory_axis.yaxis.set_major_formatter(FuncFormatter(lambda count, _: size_of(count)))
    for axis in (time_axis, memory_axis):
        axis.set_xlabel(f"N, items ({FACTORS} factors x {VALUES} values, d {WIDTH})")
        axis.grid(visible=True, alpha=0.3)
    time_axis.legend(fontsize="small", loc="lower right")
    memory_axis.legend(fontsize="small", loc="upper left")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    print(f"drawn: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="catalogue sizes")
    parser.add_argument("--limit_gb", type=float, default=5.0, help="matrices beyond are not built")
    parser.add_argument("--repeats", type=int, default=5, help="steps at least, after one to warm up")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--only", choices=METHODS, help="one method at one size in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.items[0], arguments.repeats)))
        return
    sizes = sorted(arguments.items)
    found = measure_all(sizes, arguments)
    print(f"{arguments.threads} thread(s), torch {torch.__version__}, {FACTORS} factors x {VALUES} values, d {WIDTH}\n")
    print(table(sizes, found))
    print(f"\ngrowth as a power of N, fitted from N = {FIT_FROM:,}:")
    for method in METHODS:
        powers = [slope(found[method], key) for key in ("seconds", "bytes")]
        said = ["too few sizes" if power is None else f"{power:.2f}" for power in powers]
        print(f"  {method:<12} seconds {said[0]}, memory {said[1]}")
    if arguments.plot:
        draw(sizes, found, arguments.limit_gb, arguments.plot)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
