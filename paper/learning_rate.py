"""Does ``--learning-rate auto`` find the rate? A grid of rates beside it, over densities, tasks and seeds.

    python paper/learning_rate.py                    # all of it: 120 short runs, under two hours of one core
    python paper/learning_rate.py --tasks arithmetic --seeds 0

Each cell of the grid (task, density) is trained at four rates, a factor of about 3 apart, whose product with the
density is the same everywhere, and once with ``auto``; each of these with three seeds (mask and training). Accuracy
is of 2,048 samples at temperature 1 on 512 problems of the validation split. The processes share the
work: a run belongs to the one that makes its folder. Finished runs are read, not repeated. Writes
``learning_rate.json`` and ``.md`` to --results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

DENSITIES = (1.0, 0.1, 0.01, 0.001)
PRODUCTS = (3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
LENGTH: dict[str, dict[str, int]] = {
    "arithmetic": {"steps": 30, "rollouts": 256, "micro_batch": 128},
    "alphabet_sort": {"steps": 25, "rollouts": 128, "micro_batch": 64},
}


@dataclass(frozen=True)
class Run:
    """One run: ``product`` is rate times density, None for auto."""

    task: str
    density: float
    product: float | None
    seed: int

    @property
    def name(self) -> str:
        rate = "auto" if self.product is None else f"{self.product:g}"
        return f"{self.task}-density{self.density:g}-{rate}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        arm = {"arm": "full"} if self.density == 1 else {"arm": "ticket", "density": self.density}
        rate = "auto" if self.product is None else float(f"{self.product / self.density:g}")
        length = LENGTH[self.task]
        return {
            "task": self.task,
            **arm,
            "seed": self.seed,
            "learning_rate": rate,
            **length,
            "eval": {"split": "validation", "samples": 4},
        }

    @property
    def command(self) -> str:
        """What a person types for it."""
        options = {k: v for k, v in self.settings.items() if k != "eval"}
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        return f"multiticket train {words} --split validation --output runs/{self.name}"


def all_runs(tasks: list[str], densities: list[float], seeds: list[int]) -> list[Run]:
    """Seed by seed, so that an early stop leaves a whole grid with fewer seeds."""
    return [
        Run(task, density, product, seed)
        for seed in seeds
        for task in tasks
        for density in densities
        for product in (*PRODUCTS, None)
    ]


def perform(runs: list[Run], output: Path) -> None:
    """Do every run that nobody has claimed, in this process: TRL is imported once."""
    from multiticket import config
    from multiticket.train.run import run_training

    output.mkdir(parents=True, exist_ok=True)
    for run in runs:
        folder = output / run.name
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        measured = output / f"{run.task}-base.json"  # the base's scores are the same for all runs of a task
        if measured.exists():
            shutil.copy(measured, folder / "eval-before.json")
        result = run_training(config.build(run.settings), folder, show_progress=False)
        if not measured.exists():
            shutil.copy(folder / "eval-before.json", measured)
        for heavy in ("model", "tensorboard"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
        print(f"{run.name}  {result['learning_rate']:.3g}  {accuracy(result):.3f}", flush=True)


def accuracy(result: dict[str, Any]) -> float:
    return result["eval"]["after"]["pass@1"]


def read(run: Run, output: Path) -> dict[str, Any] | None:
    """Rate, accuracy and mean KL of a finished run."""
    folder = output / run.name
    if not (folder / "result.json").exists():
        return None
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kls = sorted(line["kl"] for line in lines)
    return {
        "learning_rate": result["learning_rate"],
        "accuracy": accuracy(result),
        "mean_reward": statistics.mean(line["reward"] for line in lines),
        "median_kl": kls[len(kls) // 2],
    }


def interval(numbers: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval by Student's distribution; infinite for one number."""
    mean = statistics.mean(numbers)
    if len(numbers) < 2:
        return mean, math.inf
    quantile = float(stdtrit(len(numbers) - 1, 0.975))
    return mean, quantile * statistics.stdev(numbers) / math.sqrt(len(numbers))


def collect(runs: list[Run], output: Path) -> list[dict[str, Any]]:
    """One record for each task, density and product, over its seeds."""
    cells: dict[tuple[str, float, float | None], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        found = read(run, output)
        if found is not None:
            cells.setdefault((run.task, run.density, run.product), []).append((run, found))
    return [
        {
            "task": task,
            "density": density,
            "rate_times_density": "auto" if product is None else product,
            "seeds": [run.seed for run, _ in cell],
            **{name: [found[name] for _, found in cell] for name in cell[0][1]},
            "command": cell[0][0].command,
        }
        for (task, density, product), cell in cells.items()
    ]


def table(records: list[dict[str, Any]]) -> str:
    """Accuracy in percent of each rate, auto's, and auto minus the best rate with its interval over seeds."""
    columns = [f"{product:g}" for product in PRODUCTS]
    lines = [
        f"| task | density | {' | '.join(columns)} | auto | auto's rate x density | auto - best (95 %) |",
        "|---|---|" + "---|" * (len(columns) + 3),
    ]
    for task, density in dict.fromkeys((record["task"], record["density"]) for record in records):
        mine = {r["rate_times_density"]: r for r in records if (r["task"], r["density"]) == (task, density)}
        fixed = {product: mine[product] for product in PRODUCTS if product in mine}
        cells = [percent(fixed[p]["accuracy"]) if p in fixed else "" for p in PRODUCTS]
        row = [task, f"{100 * density:g} %", *cells, "", "", ""]
        if "auto" in mine and fixed:
            auto = mine["auto"]
            best = max(fixed.values(), key=lambda record: statistics.mean(record["accuracy"]))
            products = [rate * density for rate in auto["learning_rate"]]
            row[-3:] = [
                percent(auto["accuracy"]),
                ", ".join(f"{p:.2g}" for p in products),
                difference(auto, best),
            ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def percent(numbers: list[float]) -> str:
    return f"{100 * statistics.mean(numbers):.1f}"


def difference(auto: dict[str, Any], best: dict[str, Any]) -> str:
    """Paired by seed, in points."""
    by_seed = dict(zip(best["seeds"], best["accuracy"], strict=True))
    pairs = [
        100 * (score - by_seed[seed])
        for seed, score in zip(auto["seeds"], auto["accuracy"], strict=True)
        if seed in by_seed
    ]
    mean, half = interval(pairs)
    return f"{mean:+.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/learning-rate"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--tasks", nargs="+", default=list(LENGTH))
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the runs, a thread each")
    parser.add_argument("--only", choices=("fixed", "auto"), help="only this half of the runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = all_runs(options.tasks, options.densities, options.seeds)
    if options.only:
        runs = [run for run in runs if (run.product is None) == (options.only == "auto")]
    if options.worker:
        perform(runs, options.output)
        return
    for run in runs:  # claimed by a process that is gone
        folder = options.output / run.name
        if folder.exists() and not (folder / "result.json").exists():
            shutil.rmtree(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    again = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    workers = [subprocess.Popen(again, env=environment) for _ in range(options.jobs)]
    failed = [worker.wait() for worker in workers]
    records = collect(all_runs(options.tasks, options.densities, options.seeds), options.output)
    text = table(records)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "learning_rate.json").write_text(json.dumps(records, indent=1) + "\n")
    (options.results / "learning_rate.md").write_text(
        "# A rate that sets itself, beside a grid\n\n`python paper/learning_rate.py` wrote this table and "
        "`learning_rate.json`, which has each cell's command. Accuracy in percent of 2,048 samples on validation "
        f"problems, mean over seeds; columns are rate x density.\n\n{text}\n"
    )
    if any(failed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
