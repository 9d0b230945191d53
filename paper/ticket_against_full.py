"""Does a random 1 % do as well as everything? Each recipe of both tasks, with three seeds, on the test split.

    python paper/ticket_against_full.py             # the recipes, three seeds each
    python paper/ticket_against_full.py --sweep     # learning rates, one seed, on the validation split

Every run is one ``multiticket train`` command and one run folder; runs that are finished are not repeated. Writes
``ticket_against_full.json`` and ``.md`` (or ``learning_rates``) to --results, after each task.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DENSITY = {"full": 1.0, "ticket": 0.01}
RATES_TIMES_DENSITY = (3e-5, 1e-4, 3e-4)
SWEEP_STEPS = {"arithmetic": 150, "alphabet_sort": 100}
SWEEP_SEED = 100
SEEDS = (0, 1, 2)
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Run:
    """One ``multiticket train`` command: a recipe with a seed, and for a sweep a rate of its own."""

    task: str
    arm: str
    seed: int
    rate: float | None = None

    def folder(self, output: Path) -> Path:
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return output / f"{self.task}-{self.arm}{rate}-seed{self.seed}"

    def command(self, output: Path) -> list[str]:
        recipe = RECIPES / f"{self.task}-{self.arm}.yaml"
        options = ["--config", os.path.relpath(recipe), "--seed", str(self.seed)]
        if self.rate is not None:
            options += ["--learning-rate", f"{self.rate:g}", "--steps", str(SWEEP_STEPS[self.task])]
            options += ["--split", "validation"]
        return ["multiticket", "train", *options, "--output", str(self.folder(output))]

    def result(self, output: Path) -> dict[str, Any]:
        return json.loads((self.folder(output) / "result.json").read_text())


def perform(runs: list[Run], output: Path, jobs: int) -> None:
    """Do what is missing, ``jobs`` at a time, with the cores shared among them."""
    missing = [run for run in runs if not (run.folder(output) / "result.json").exists()]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}

    def start(run: Run) -> None:
        command = run.command(output) + (["--resume"] if run.folder(output).exists() else [])
        module = [sys.executable, "-c", "from multiticket.cli import main; main()", *command[1:]]
        done = subprocess.run(module, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        print(f"{shlex.join(command)}  ->  {score(run.result(output)):.3f}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(start, missing))


def score(result: dict[str, Any]) -> float:
    """Sampled accuracy after training."""
    return result["eval"]["after"]["pass@1"]


def table(runs: list[Run], output: Path) -> tuple[str, list[dict[str, Any]]]:
    """A row and a record for each task, arm and learning rate, over its seeds."""
    lines = [
        "| task | arm | rate | steps | base | after: mean (each seed) | 95 % of each run | greedy | trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    records = []
    cells: dict[tuple[str, str, float | None], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.task, run.arm, run.rate), []).append(run)
    for (task, arm, _), cell in cells.items():
        results = [run.result(output) for run in cell]
        first = results[0]
        before, after = first["eval"]["before"], [result["eval"]["after"] for result in results]
        scores = [score(result) for result in results]
        widest = max(high - low for low, high in (measured["interval"] for measured in after)) / 2
        greedy = statistics.mean(measured["greedy"] for measured in after)
        each = ", ".join(f"{100 * value:.1f}" for value in scores)
        lines.append(
            f"| {task} | {arm} | {first['learning_rate']:g} | {first['steps']} | {100 * before['pass@1']:.1f} % "
            f"| {100 * statistics.mean(scores):.1f} % ({each}) | ± {100 * widest:.1f} | {100 * greedy:.1f} % "
            f"| {first['nnz']:,} |"
        )
        records.append(
            {
                "task": task,
                "arm": arm,
                "learning_rate": first["learning_rate"],
                "steps": first["steps"],
                "seeds": [run.seed for run in cell],
                "before": before,
                "after": after,
                "train_s": [result["train_s"] for result in results],
                "commands": [shlex.join(run.command(Path("runs"))) for run in cell],
                "versions": first["versions"],
            }
        )
    return "\n".join(lines), records


def report(runs: list[Run], output: Path, results: Path, sweep: bool) -> None:
    """Print the table so far, and write it with its records."""
    text, records = table(runs, output)
    print(text, flush=True)
    results.mkdir(parents=True, exist_ok=True)
    name, heading = ("learning_rates", "Learning rates, on the validation split")
    if not sweep:
        name, heading = ("ticket_against_full", "A random 1 % against everything, on the test split")
    command = "python paper/ticket_against_full.py" + (" --sweep" if sweep else "")
    (results / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n")
    (results / f"{name}.md").write_text(
        f"# {heading}\n\n`{command}` wrote this table and `{name}.json`, which has each run's own command. Accuracy is "
        f"of samples at temperature 1; intervals are over problems.\n\n{text}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/ticket-against-full"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "alphabet_sort"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    parser.add_argument("--sweep", action="store_true", help="learning rates, on the validation split")
    options = parser.parse_args()
    done: list[Run] = []
    for task in options.tasks:
        if options.sweep:
            products = [(arm, product) for arm in DENSITY for product in RATES_TIMES_DENSITY]
            runs = [Run(task, arm, SWEEP_SEED, float(f"{p / DENSITY[arm]:g}")) for arm, p in products]
        else:
            runs = [Run(task, arm, seed) for seed in SEEDS for arm in DENSITY]
        perform(runs, options.output, options.jobs)
        done += runs
        report(done, options.output, options.results, options.sweep)


if __name__ == "__main__":
    main()
