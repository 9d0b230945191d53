"""Does a random 1 % do as well as everything? Both tasks, rates chosen on validation problems, three seeds each.

    python benchmarks/ticket_against_full.py --output runs/ticket-against-full --jobs 2

First each arm trains once at each learning rate of a grid and is scored on the validation split; then, at its best
rate, once for each of three seeds, scored on the test split. Every run is one ``multiticket train`` command and one
run folder; runs that are finished are not repeated. Writes ``ticket_against_full.json`` and ``.md`` to --results.
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
RATES_TIMES_DENSITY = (1e-4, 3e-4, 1e-3)
SIZES = {"arithmetic": {"steps": 120, "rollouts": 512}, "alphabet_sort": {"steps": 60, "rollouts": 256}}
SWEEP_SEED = 100
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One ``multiticket train`` command."""

    task: str
    arm: str
    learning_rate: float
    seed: int
    split: str

    def folder(self, output: Path) -> Path:
        return output / f"{self.task}-{self.arm}-rate{self.learning_rate:g}-seed{self.seed}-{self.split}"

    def command(self, output: Path) -> list[str]:
        options = ["--task", self.task, "--arm", self.arm, "--learning-rate", f"{self.learning_rate:g}"]
        options += ["--seed", str(self.seed), "--split", self.split]
        options += [word for name, size in SIZES[self.task].items() for word in (f"--{name}", str(size))]
        options += ["--density", "0.01"] if self.arm == "ticket" else []
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


def table(sweeps: list[Run], finals: list[Run], output: Path) -> tuple[str, list[dict[str, Any]]]:
    """The results as Markdown, and one record for each task and arm."""
    lines = [
        "| task | arm | rate | base | after: mean (each seed) | 95 % of each run | trained |",
        "|---|---|---|---|---|---|---|",
    ]
    records = []
    for task, arm in dict.fromkeys((run.task, run.arm) for run in finals):
        runs = [run for run in finals if (run.task, run.arm) == (task, arm)]
        results = [run.result(output) for run in runs]
        scores = [score(result) for result in results]
        intervals = [result["eval"]["after"]["interval"] for result in results]
        base = results[0]["eval"]["before"]["pass@1"]
        spread = ", ".join(f"{100 * value:.1f}" for value in scores)
        widest = max(high - low for low, high in intervals) / 2
        lines.append(
            f"| {task} | {arm} | {runs[0].learning_rate:g} | {100 * base:.1f} % "
            f"| {100 * statistics.mean(scores):.1f} % ({spread}) | ± {100 * widest:.1f} | {results[0]['nnz']:,} |"
        )
        sweep = {
            f"{run.learning_rate:g}": score(run.result(output))
            for run in sweeps
            if (run.task, run.arm) == (task, arm)
        }
        records.append(
            {
                "task": task,
                "arm": arm,
                "learning_rate": runs[0].learning_rate,
                "validation_accuracy_by_rate": sweep,
                "base": base,
                "after": dict(zip((run.seed for run in runs), scores, strict=True)),
                "intervals": intervals,
                "greedy": [result["eval"]["after"]["greedy"] for result in results],
                "n": results[0]["eval"]["after"]["n"],
                "train_s": [result["train_s"] for result in results],
                "commands": [shlex.join(run.command(Path("runs"))) for run in runs],
                "versions": results[0]["versions"],
            }
        )
    return "\n".join(lines), records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/ticket-against-full"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "alphabet_sort"])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    sweeps: list[Run] = []
    finals: list[Run] = []
    for task in options.tasks:
        tried = {
            arm: [
                Run(task, arm, float(f"{product / density:g}"), SWEEP_SEED, "validation")
                for product in RATES_TIMES_DENSITY
            ]
            for arm, density in DENSITY.items()
        }
        swept = [run for runs in tried.values() for run in runs]
        perform(swept, options.output, options.jobs)
        best = {
            arm: max(runs, key=lambda run: score(run.result(options.output))).learning_rate
            for arm, runs in tried.items()
        }
        final = [Run(task, arm, rate, seed, "test") for seed in SEEDS for arm, rate in best.items()]
        perform(final, options.output, options.jobs)
        sweeps += swept
        finals += final
        report(sweeps, finals, options.output, options.results)


def report(sweeps: list[Run], finals: list[Run], output: Path, results: Path) -> None:
    """Print the table so far, and write it with its records."""
    text, records = table(sweeps, finals, output)
    print(text, flush=True)
    results.mkdir(parents=True, exist_ok=True)
    (results / "ticket_against_full.json").write_text(json.dumps(records, indent=1) + "\n")
    heading = "# A random 1 % against everything\n\n"
    heading += (
        "`python benchmarks/ticket_against_full.py` wrote this table and `ticket_against_full.json`.\n\n"
    )
    (results / "ticket_against_full.md").write_text(heading + text + "\n")


if __name__ == "__main__":
    main()
