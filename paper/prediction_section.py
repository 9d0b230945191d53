"""Does what a mask keeps of the gradient before training rank masks as training does?

    multiticket study run recipes/studies/evidence.yaml           # the control runs, at least four ways
    python paper/prediction_section.py --runs runs/evidence

Takes the study's finished control runs (random, one layer, one kind of module, columns, magnitude, Fisher, principal;
--cells), makes each one's mask on the base again, measures what it keeps of the base's policy gradients, and ranks.
Uses whichever runs are finished, and says how many; the verdict waits for all. Some minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multiticket.cli.outputs import refuse_unwritable
from multiticket.research.study.evidence import Evidence, Finished
from multiticket.research.study.grid import load
from multiticket.research.theory.prediction import prediction
from prediction_page import FEWEST, prediction_section
from program import add_sampling, command_line, finish, program_parser, run_program, sampling, say

CELLS = [
    "random",
    "first layer",
    "last layer",
    "attention",
    "mlp",
    "embeddings",
    "columns",
    "magnitude",
    "fisher",
    "principal",
    "off-principal",
]


def finished(evidence: Evidence, labels: list[str]) -> dict[str, list[Finished]]:
    """The finished runs of each cell that the study has.

    Raises:
        ValueError: the study has no such cell, or too few have finished runs.
    """
    known = {cell.label for cell in evidence.study.cells}
    for label in labels:
        if label not in known:
            raise ValueError(
                f"The study has no cell {label!r}: give --cells among {', '.join(sorted(known))}."
            )
    found = {label: evidence.scored(label) for label in labels}
    done = [label for label, runs in found.items() if runs]
    if len(done) < FEWEST:
        raise ValueError(
            f"{len(done)} of {len(labels)} cells have a finished run and a rank correlation needs {FEWEST}: "
            "continue the study first."
        )
    return found


def measured(runs: dict[str, list[Finished]], options: Any) -> dict[str, Any]:
    """`prediction`, with the label of each run's cell."""
    found = [(label, run) for label, of in runs.items() for run in of]
    say(
        f"{len(found)} runs of {sum(bool(of) for of in runs.values())} cells: their masks, and the base's gradients"
    )
    result = prediction([run.folder for _, run in found], sampling(options), options.rank)
    for row, (label, _) in zip(result["runs"], found, strict=True):
        row["way"] = label
    return result


def main() -> None:
    parser = program_parser(__doc__ or "", "prediction")
    parser.add_argument("--study", type=Path, default=Path("recipes/studies/evidence.yaml"))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/evidence"), help="the study's folder (%(default)s)"
    )
    parser.add_argument(
        "--cells", nargs="+", default=CELLS, metavar="LABEL", help="ways of choosing positions"
    )
    add_sampling(parser)
    options = parser.parse_args()
    refuse_unwritable(options.section)
    evidence = Evidence(load(options.study), options.runs, "")
    runs = finished(evidence, options.cells)
    result = measured(runs, options)
    done, of = evidence.progress(options.cells)
    config = next(run for found in runs.values() for run in found).config
    section = prediction_section(
        result,
        [label for label, found in runs.items() if not found],
        done == of,
        f"{Path(config.model).name}, {config.task}, density {config.density:g}, {config.steps} steps of "
        f"{config.rollouts} rollouts, rate {'found by each run' if config.learning_rate == 'auto' else 'fixed'}.",
        command_line(parser, options),
    )
    finish(section, options.section)


if __name__ == "__main__":
    run_program(main)
