"""What each way to a linear weight's gradient costs, against the dense product: for the table in sparse/crossover.py.

    python benchmarks/gradient_paths.py --rounds 15 --threads 2 --fit --json docs/results/gradient_paths.json

Each case is a shape, a density, a number of tokens and a dtype. In each round every way runs once, in a new random
order, in one process; reported are the medians over rounds of the ratios to the dense product within a round. ``--fit``
prints the ``Cost`` of each way and dtype, fitted by least squares to its time over that of ``blocks``: what
``CPU_COST`` should hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from multiticket.sparse import native
from multiticket.sparse.crop import row_starts
from multiticket.sparse.gradient import linear_values_grad

SHAPES = [(128, 128), (256, 512), (512, 512), (2048, 512), (512, 2048), (8192, 512)]
DENSITIES = [0.001, 0.01, 0.05, 0.1]
TOKENS = [256, 1024]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ways(
    rows: int, columns: int, density: float, tokens: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Any]]:
    """The dense product and each way to the same gradient, ready to run."""
    generator = torch.Generator().manual_seed(0)
    k = max(1, int(rows * columns * density))
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.int().to(device)
    starts = row_starts(positions, rows, columns)
    dy = torch.randn(tokens, rows, generator=generator).to(device, dtype)
    x = torch.randn(tokens, columns, generator=generator).to(device, dtype)
    found: dict[str, Callable[[], Any]] = {"dense": lambda: dy.T @ x}
    compiled = ["native"] if device == "cpu" and native.library() is not None else []
    for method in [*compiled, "sampled", "blocks"] + (["triton"] if device == "cuda" else []):
        found[method] = lambda method=method: linear_values_grad(dy, x, positions, starts, method)
    return found


def measure(runs: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first, unmeasured, warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in random.sample(list(runs), len(runs)):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            runs[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fit(cases: list[dict[str, Any]]) -> dict[str, list[float]]:
    """``Cost`` (per_edge, per_density, constant) by way and dtype, weighting relative errors alike."""
    costs = {}
    for way, dtype in itertools.product(("native", "sampled"), sorted({case["dtype"] for case in cases})):
        own = [case for case in cases if case["dtype"] == dtype and f"{way} / blocks" in case]
        if own:
            share = torch.tensor([case[f"{way} / blocks"] for case in own], dtype=torch.float64)
            terms = [[1 / case["rows"] + 1 / case["columns"], case["density"], 1.0] for case in own]
            system = torch.tensor(terms, dtype=torch.float64) / share[:, None]
            solved = torch.linalg.lstsq(system, torch.ones(len(own), 1, dtype=torch.float64)).solution
            costs[f"{way}, {dtype}"] = solved.flatten().tolist()
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases: list[dict[str, Any]] = []
    for dtype, (rows, columns), density, tokens in itertools.product(
        options.dtypes, SHAPES, DENSITIES, TOKENS
    ):
        runs = ways(rows, columns, density, tokens, DTYPES[dtype], options.device)
        seconds = measure(runs, options.rounds, options.device)
        case = {"dtype": dtype, "rows": rows, "columns": columns, "density": density, "tokens": tokens}
        case["dense_s"] = statistics.median(seconds["dense"])
        for name in runs:
            case[f"{name} / dense"] = median_ratio(seconds[name], seconds["dense"])
        for way in ("native", "sampled"):
            if way in runs:
                case[f"{way} / blocks"] = median_ratio(seconds[way], seconds["blocks"])
        cases.append(case)
        ratios = "  ".join(f"{name} {case[f'{name} / dense']:.2f}" for name in runs if name != "dense")
        print(f"{dtype}  {rows:>5} x {columns:<5} {density:<6g} {tokens:>5} tokens  {ratios}", flush=True)
    result: dict[str, Any] = {"torch": torch.__version__, **vars(options), "json": None, "cases": cases}
    if options.fit:
        result["cost"] = fit(cases)
        for which, cost in result["cost"].items():
            print(f"{which}: Cost(per_edge={cost[0]:.1f}, per_density={cost[1]:.2f}, constant={cost[2]:.3f})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
