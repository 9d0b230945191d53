"""Does the policy gradient lie in few directions, spread over coordinates, and do random masks keep them?

    python paper/subspace_section.py --runs runs/evidence        # takes the runs' rates from the study
    python paper/subspace_section.py --problems 8 --steps 4      # a try, in minutes

Trains one run of all parameters and one 1 % ticket with two checkpoints each (--output, run folders; finished ones are
not repeated), and looks at the gradients of the base and of the middle and end of both runs: spectrum, effective rank
with its bound and growth, how the leading directions lie in the coordinates, and what random and other masks keep.
Each state is what ``multiticket theory fisher`` and ``subspace`` measure with --checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extra_runs import ExtraRuns
from multiticket.cli.outputs import refuse_unwritable
from multiticket.config import RunConfig
from multiticket.research.theory.fisher import measured, spectrum, subspaces
from multiticket.runs.folder import RunFolder, read_metrics
from program import add_sampling, command_line, finish, program_parser, run_program, sampling, say
from subspace_page import StateGradients, subspace_section

MASKS = "first-layer,last-layer,attention,mlp,columns,magnitude,fisher"


def runs_of(extra: ExtraRuns, options: Any) -> dict[str, RunConfig]:
    """Full training and a ticket, each with a checkpoint in the middle and at the end."""
    sizes = {
        name: getattr(options, name) for name in ("steps", "rollouts") if getattr(options, name) is not None
    }
    if options.rollouts is not None:
        sizes["micro_batch"] = options.rollouts
    shared = {**sizes, "keep_last": 2, "seed": options.mask_seed, "eval": {"problems": 512}}
    if options.model is not None:
        shared["model"] = options.model
    configs = {
        "full": extra.settings(options.task, arm="full", density=1.0, **shared),
        "ticket": extra.settings(options.task, density=options.density, **shared),
    }
    for name, config in configs.items():
        if config.steps < 2:
            raise ValueError("The middle of a run needs at least 2 steps: give --steps more.")
        configs[name] = config.model_copy(update={"save_every": (config.steps + 1) // 2})
    return configs


def states_of(runs: dict[str, Path], model: str) -> list[tuple[str, str, float | None]]:
    """Name, place and pass@1 (of a checkpoint on the way: of its own rollouts) of every state."""
    states: list[tuple[str, str, float | None]] = []
    for name, path in runs.items():
        run = RunFolder(path)
        result = run.read_result()
        assert result is not None
        if not states:
            states.append(("base", model, result["eval"]["before"]["pass@1"]))
        for step in run.checkpoints.steps():
            score = (
                result["eval"]["after"]["pass@1"] if step == result["steps"] else rollouts_right(path, step)
            )
            states.append((f"{name}, step {step}", str(run.checkpoints.of(step)), score))
    return states


def rollouts_right(path: Path, step: int) -> float | None:
    """The share of the step's own rollouts that was right."""
    found = [line for line in read_metrics(RunFolder(path).metrics) if line["step"] == step]
    return float(found[0]["accuracy"]) if found and "accuracy" in found[0] else None


def measure_state(name: str, place: str, accuracy: float | None, options: Any) -> StateGradients:
    """Both instruments on one state's gradients."""
    say(f"{name}: gradients of {options.problems} x {options.group} completions")
    found = measured(sampling(options, place, options.task))
    random = subspaces(found, ["random"], options.densities, options.mask_seeds, options.rank)
    controls = [name for name in options.masks.split(",") if name != "random"]
    others = subspaces(found, controls, [options.density], options.mask_seeds, options.rank)
    own = [
        {**row, "mask": "the ticket's own"}
        for row in random["masks"]
        if name.startswith("ticket") and (row["density"], row["seed"]) == (options.density, options.mask_seed)
    ]
    kept = {**random, "masks": [*random["masks"], *own, *others["masks"]]}
    return StateGradients(name, accuracy, spectrum(found, options.rank), kept)


def main() -> None:
    parser = program_parser(__doc__ or "", "subspace")
    parser.add_argument(
        "--study", type=Path, default=Path("recipes/studies/evidence.yaml"), help="gives the settings"
    )
    parser.add_argument("--runs", type=Path, help="the study's folder, for the rates that it chose")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/subspace"), help="of the two runs (%(default)s)"
    )
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--model", help="the base; default the study's")
    parser.add_argument("--density", type=float, default=0.01, help="of the ticket, and of the masks claimed")
    parser.add_argument("--mask-seed", type=int, default=0, help="of the ticket")
    parser.add_argument("--steps", type=int, help="instead of the study's")
    parser.add_argument("--rollouts", type=int, help="instead of the study's")
    add_sampling(parser)
    parser.add_argument("--masks", default=MASKS, help="beside random, of the claimed density")
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.03, 0.01, 0.003, 0.001])
    parser.add_argument("--mask-seeds", type=int, default=5, help="of each mask, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    options = parser.parse_args()
    refuse_unwritable(options.section)
    if options.density not in options.densities:
        raise ValueError(f"--densities must include the claimed one, {options.density:g}.")
    extra = ExtraRuns(options.study, options.runs, options.output)
    configs = runs_of(extra, options)
    runs = extra.do(configs, options.jobs, say, checkpoints=2)
    states = states_of(runs, configs["full"].model)
    measured_states = [measure_state(*state, options) for state in states]
    words = "; ".join(f"{name} rate {config.learning_rate:g}" for name, config in configs.items())
    first = configs["full"]
    about = {"task": options.task, "model": Path(first.model).name, "density": options.density}
    section = subspace_section(
        measured_states,
        options.density,
        f"{about['model']}, {options.task}: {first.steps} steps of {first.rollouts} rollouts, {words}. Accuracy in the "
        "middle of a run is of the step's own rollouts, at its ends of test problems.",
        command_line(parser, options),
        about,
    )
    finish(section, options.section)


if __name__ == "__main__":
    run_program(main)
