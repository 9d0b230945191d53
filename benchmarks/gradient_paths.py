"""What each way to a linear weight's gradient costs, against the dense product: for the table in sparse/crossover.py.

    python benchmarks/gradient_paths.py --rounds 15 --threads 2 --fit --json docs/results/gradient_paths.json
    python benchmarks/gradient_paths.py --device cuda --fit --json docs/results/gradient_paths_gpu.json

Each case is a shape, a density, a number of tokens and a dtype. In each round every way runs once, in a new random
order, in one process; reported are the medians over rounds of the ratios to the dense product within a round. ``--fit``
prints the ``Cost`` of each way and dtype, fitted by least squares to its time over that of ``blocks``: what
``CPU_COST`` should hold. On a GPU the layers are those of Qwen2.5-0.5B and 1.5B, and beside each way's time stand the
operations and bytes a second that it needs at least, next to what the card does in the same run: a matrix product of
8,192 x 8,192 x 8,192 and a copy.
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

from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.crop import row_starts
from multiticket.sparse.gradient.linear import linear_values_grad

SHAPES = {
    "cpu": [(128, 128), (256, 512), (512, 512), (2048, 512), (512, 2048), (8192, 512)],
    "cuda": [(896, 896), (4864, 896), (896, 4864), (1536, 1536), (8960, 1536), (1536, 8960), (151936, 896)],
}
DENSITIES = {"cpu": [0.001, 0.01, 0.05, 0.1], "cuda": [0.0001, 0.001, 0.003, 0.01, 0.03, 0.1]}
TOKENS = {"cpu": [256, 1024], "cuda": [4096, 16384]}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FITTED = ("native", "sampled")


def ways(
    rows: int, columns: int, density: float, tokens: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Any]]:
    """The dense product and each way to the same gradient, ready to run."""
    generator = torch.Generator(device).manual_seed(0)
    k = max(1, int(rows * columns * density))
    positions = torch.randperm(rows * columns, generator=generator, device=device)[:k].sort().values.int()
    starts = row_starts(positions, rows, columns)
    on_host = starts.cpu()  # as a layer has it
    dy = torch.randn(tokens, rows, generator=generator, device=device).to(dtype)
    x = torch.randn(tokens, columns, generator=generator, device=device).to(dtype)
    found: dict[str, Callable[[], Any]] = {"dense": lambda: dy.T @ x}
    compiled = ["native"] if device == "cpu" and native.library() is not None else []
    for method in ["blocks"] if device == "cuda" else [*compiled, "sampled", "blocks"]:
        of = on_host if method == "blocks" else starts
        found[method] = lambda method=method, of=of: linear_values_grad(dy, x, positions, of, method)
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


def ceilings() -> dict[str, float]:
    """What the card does at best here: operations a second of a bf16 product, bytes a second of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = measure({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 10, "cuda")
    return {
        "flops": 2 * 8192**3 / statistics.median(seconds["product"]),
        "bytes": 2 * source.numel() / statistics.median(seconds["copy"]),
    }


def achieved(case: dict[str, Any], way: str, itemsize: int) -> dict[str, float]:
    """Operations a second of the dense product that a way makes, and bytes a second that it reads and writes."""
    rows, columns, tokens, seconds = case["rows"], case["columns"], case["tokens"], case[f"{way}_s"]
    entries = rows * columns
    operands = (rows + columns) * tokens * itemsize
    written = entries * (itemsize if way == "dense" else 4)
    return {"flops": 2 * entries * tokens / seconds, "bytes": (operands + written) / seconds}


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fit(cases: list[dict[str, Any]]) -> dict[str, list[float]]:
    """``Cost`` (per_edge, per_density, constant) by way and dtype, weighting relative errors alike."""
    costs = {}
    for way, dtype in itertools.product(FITTED, sorted({case["dtype"] for case in cases})):
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
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="default: both, on a GPU bf16")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases: list[dict[str, Any]] = []
    device = options.device
    options.dtypes = options.dtypes or (list(DTYPES) if device == "cpu" else ["bf16"])
    for dtype, (rows, columns), tokens, density in itertools.product(
        options.dtypes, SHAPES[device], TOKENS[device], DENSITIES[device]
    ):
        runs = ways(rows, columns, density, tokens, DTYPES[dtype], device)
        seconds = measure(runs, options.rounds, device)
        case = {"dtype": dtype, "rows": rows, "columns": columns, "density": density, "tokens": tokens}
        for name in runs:
            case[f"{name}_s"] = statistics.median(seconds[name])
            case[f"{name} / dense"] = median_ratio(seconds[name], seconds["dense"])
        for way in FITTED:
            if way in runs:
                case[f"{way} / blocks"] = median_ratio(seconds[way], seconds["blocks"])
        if device == "cuda":
            case["achieved"] = {name: achieved(case, name, DTYPES[dtype].itemsize) for name in runs}
        cases.append(case)
        ratios = "  ".join(f"{name} {case[f'{name} / dense']:.2f}" for name in runs if name != "dense")
        shape = f"{dtype}  {rows:>6} x {columns:<5} {density:<6g} {tokens:>5} tokens"
        print(f"{shape}  dense {1e3 * case['dense_s']:.3f} ms  {ratios}", flush=True)
    result: dict[str, Any] = {"torch": torch.__version__, **vars(options), "json": None, "cases": cases}
    if device == "cuda":
        result["device_name"], result["ceilings"] = torch.cuda.get_device_name(), ceilings()
        print("this card: {flops:.3g} operations/s, {bytes:.3g} bytes/s".format(**result["ceilings"]))
    if options.fit:
        result["cost"] = fit(cases)
        for which, cost in result["cost"].items():
            print(f"{which}: Cost(per_edge={cost[0]:.1f}, per_density={cost[1]:.2f}, constant={cost[2]:.3f})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
