"""Does ``--learning-rate auto`` find the rate? Against the best of a grid of rates, over densities, tasks and seeds.

    multiticket study run recipes/studies/learning_rate.yaml --workers 2
    python paper/learning_rate.py

Takes whichever runs are finished. The best rate of a task and density is the one with the highest mean accuracy over
seeds, on the same problems, to the grid's advantage.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from multiticket.cli.outputs import refuse_unwritable
from multiticket.research.study.evidence import Evidence, Finished, by, percentage
from multiticket.research.study.grid import load
from multiticket.research.study.page_section import PageSection, Table
from multiticket.runs.folder import RunFolder, read_metrics
from program import command_line, finish, program_parser, run_program

AUTO = "auto"


def product(run: Finished) -> float | str:
    """Rate times density, which the same columns of all densities share; or ``auto``."""
    asked = run.result["learning_rate_asked"]
    return AUTO if asked == AUTO else float(f"{asked * run.config.density:.3g}")


def record(cell: list[Finished]) -> dict[str, Any]:
    """Rates, accuracies, rewards and KL of the runs of one task, density and rate, a number a seed."""
    lines = [read_metrics(RunFolder(run.folder).metrics) for run in cell]
    return {
        "task": cell[0].config.task,
        "density": cell[0].config.density,
        "rate_times_density": product(cell[0]),
        "seeds": [run.config.seed for run in cell],
        "learning_rate": [run.result["learning_rate"] for run in cell],
        "accuracy": [run.score("pass@1") for run in cell],
        "mean_reward": [statistics.mean(line["reward"] for line in of) for of in lines],
        "median_kl": [statistics.median_high(line["kl"] for line in of) for of in lines],
    }


def difference(auto: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """In points, paired by seed, with Student's interval."""
    by_seed = dict(zip(best["seeds"], best["accuracy"], strict=True))
    scored = zip(auto["seeds"], auto["accuracy"], strict=True)
    pairs = [100 * (score - by_seed[seed]) for seed, score in scored if seed in by_seed]
    if len(pairs) < 2:
        return f"{statistics.mean(pairs):+.1f}" if pairs else ""
    wide = ttest_1samp(pairs, 0).confidence_interval().high - statistics.mean(pairs)
    return f"{statistics.mean(pairs):+.1f} ± {wide:.1f}"


def learning_rate_section(runs: list[Finished], command: str) -> PageSection:
    """A row for each task and density: accuracy in percent at each rate, auto's, and auto minus the best."""
    records = [
        record(cell) for cell in by(runs, lambda r: (r.setting, r.config.density, product(r))).values()
    ]
    products = sorted({one["rate_times_density"] for one in records} - {AUTO})
    rows: dict[tuple[str, float], dict[float | str, dict[str, Any]]] = {}
    for one in records:
        rows.setdefault((one["task"], one["density"]), {})[one["rate_times_density"]] = one

    def percent(at: float | str, row: tuple[Any, Mapping[Any, Any]]) -> float | None:
        return round(100 * statistics.mean(row[1][at]["accuracy"]), 1) if at in row[1] else None

    def against_best(of: Mapping[Any, Any]) -> str:
        fixed = [one for at, one in of.items() if at != AUTO]
        best = max(fixed, key=lambda one: statistics.mean(one["accuracy"]), default=None)
        return difference(of[AUTO], best) if best is not None and AUTO in of else ""

    table = Table.of(
        "Accuracy in percent of samples, mean over seeds; columns are rate × density",
        rows.items(),
        {
            "task": lambda row: row[0][0],
            "density": lambda row: percentage(row[0][1]),
            **{f"{at:g}": partial(percent, at) for at in products},
            AUTO: partial(percent, AUTO),
            "auto's rate × density": lambda row: ", ".join(
                f"{rate * row[0][1]:.2g}" for rate in row[1].get(AUTO, {}).get("learning_rate", [])
            ),
            "auto - best (95 %)": lambda row: against_best(row[1]),
        },
    )
    return PageSection(
        name="learning_rate",
        heading="A rate that sets itself, beside a grid.",
        answer="Against the rate with the best mean in each row; intervals are Student's over seeds.",
        n=f"{len(runs)} runs",
        command=command,
        tables=[table],
        numbers={"records": records},
    )


def main() -> None:
    parser = program_parser(__doc__ or "", "learning_rate")
    parser.add_argument("--study", type=Path, default=Path("recipes/studies/learning_rate.yaml"))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning_rate"), help="the study's folder")
    options = parser.parse_args()
    refuse_unwritable(options.section)
    study = load(options.study)
    runs = Evidence(study, options.runs, "").finished(study.runs)
    if not runs:
        raise ValueError(f"No run in {options.runs} is finished: run the study first.")
    finish(learning_rate_section(runs, command_line(parser, options)), options.section)


if __name__ == "__main__":
    run_program(main)
