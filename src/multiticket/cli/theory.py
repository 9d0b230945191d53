"""``multiticket theory``: measurements of why random sparse training works, and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiticket.cli.outputs import Command, Json, give, one_model, refuse_picture, refuse_unwritable

if TYPE_CHECKING:
    from multiticket.research.theory.fisher import Sampling

MASKS = "random,first-layer,last-layer,attention,mlp,columns,magnitude,fisher"

MODEL_OPTION = Annotated[str | None, typer.Option("--model", help="The model; the same as MODEL.")]
MODEL = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A shipped base (default tiny-qwen2), a model's folder, a hub name, or a finished run.",
    ),
]
TICKET = Annotated[Path | None, typer.Option(help="A ticket, on the base that it names, in place of MODEL.")]
CHECKPOINT = Annotated[Path | None, typer.Option(help="A run's checkpoints/step-N, in place of MODEL.")]
TASK = Annotated[
    str | None,
    typer.Option(help="The task; default: the run's or ticket's, else arithmetic."),
]
GRADIENT = Annotated[
    str, typer.Option(help="policy: advantage times grad log p; score: grad log p (the Fisher matrix's).")
]
SPLIT = Annotated[str, typer.Option(help="The split: train, validation or test.")]
PROBLEMS = Annotated[
    int, typer.Option(min=0, help="Number of problems, from the split's beginning; 0 for all.")
]
GROUP = Annotated[int, typer.Option(min=1, help="Completions per problem.")]
SEED = Annotated[int, typer.Option(min=0, help="Seed of the sampling.")]
RANK = Annotated[int, typer.Option(min=1, help="Number of leading eigenvectors.")]
MEMORY = Annotated[float, typer.Option(help="GiB of gradients at once; less takes more passes.")]
PLOT = Annotated[Path | None, typer.Option("--plot", help="Draw a figure to this file: .svg, .png or .pdf.")]
RUNS = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]


def register(app: typer.Typer) -> None:
    theory = typer.Typer(
        help="Measure why sparse training works: KL, gradient spectra, masked gradients, and updates.",
        no_args_is_help=True,
    )
    theory.command("kl", cls=Command)(kl)
    theory.command("fisher", cls=Command)(fisher)
    theory.command("subspace", cls=Command)(subspace)
    theory.command("predict", cls=Command)(predict)
    theory.command("updates", cls=Command)(updates)
    app.add_typer(theory, name="theory")


def kl(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders.")] = None,
    before: Annotated[
        str | None,
        typer.Option(help="First state, in place of runs: a run, checkpoint, ticket, adapter or model."),
    ] = None,
    after: Annotated[str | None, typer.Option(help="The state to compare with --before.")] = None,
    task: Annotated[
        str | None, typer.Option(help="The task, with --before; default: the run's or ticket's.")
    ] = None,
    split: SPLIT = "validation",
    problems: PROBLEMS = 64,
    group: GROUP = 4,
    seed: SEED = 0,
    json: Json = None,
    plot: PLOT = None,
) -> None:
    """KL between policies, exact over the vocabulary: from the base and from checkpoint to checkpoint, or of two
    states.
    """
    if (before is None) != (after is None) or (runs is None or not runs) == (before is None):
        raise ValueError("Give run folders, or both --before and --after.")
    if runs and task is not None:
        raise ValueError("Runs are compared on their own task: omit --task, or give --before and --after.")
    if plot is not None and not runs:
        raise ValueError("--plot draws runs over their steps, which two states do not have: omit it.")
    _refuse_before_measuring(json, plot)
    from multiticket.cli.theory_tables import print_kl, print_kl_of_states
    from multiticket.research.theory.trajectory import Contexts, kl_of_run, kl_of_states

    contexts = Contexts(split, problems, group, seed)
    if before is not None and after is not None:
        result = kl_of_states(before, after, task, contexts)
        give(result, json, lambda: print_kl_of_states(result))
        return
    found = [kl_of_run(run, contexts) for run in runs or []]

    def print_runs() -> None:
        for one in found:
            print_kl(one)

    give({"runs": found}, json, print_runs)
    if plot is not None:
        from multiticket.research.report.figures import write_figures
        from multiticket.research.theory import plots

        write_figures(plots.kl(found), plot)


def predict(
    runs: RUNS,
    gradient: GRADIENT = "policy",
    split: SPLIT = "validation",
    problems: PROBLEMS = 32,
    group: GROUP = 8,
    seed: SEED = 0,
    rank: RANK = 4,
    memory: MEMORY = 1.0,
    json: Json = None,
    plot: PLOT = None,
) -> None:
    """Correlate what a mask keeps of the gradient before training with accuracy after it, over runs."""
    _refuse_before_measuring(json, plot)
    sampling = _sampling("", None, gradient, split, problems, group, seed, memory)
    from multiticket.cli.theory_tables import print_prediction
    from multiticket.research.theory.prediction import prediction

    result = prediction(runs, sampling, rank)
    give(result, json, lambda: print_prediction(result))
    if plot is not None:
        from multiticket.research.report.figures import write_figures
        from multiticket.research.theory import plots

        write_figures(plots.prediction(result), plot)


def updates(
    runs: RUNS,
    split: SPLIT = "validation",
    problems: PROBLEMS = 64,
    group: GROUP = 4,
    seed: SEED = 0,
    json: Json = None,
    plot: PLOT = None,
) -> None:
    """Measure how many weights a run changed and how far, the rank of each update, and the KL from the base."""
    _refuse_before_measuring(json, plot)
    from multiticket.cli.theory_tables import print_updates
    from multiticket.research.theory.run_update import update_of_run
    from multiticket.research.theory.trajectory import Contexts

    found = [update_of_run(run, Contexts(split, problems, group, seed)) for run in runs]
    give({"runs": found}, json, lambda: print_updates(found))
    if plot is not None:
        from multiticket.research.report.figures import write_figures
        from multiticket.research.theory import plots

        write_figures(plots.updates(found), plot)


def fisher(
    model_argument: MODEL = None,
    model: MODEL_OPTION = None,
    ticket: TICKET = None,
    checkpoint: CHECKPOINT = None,
    task: TASK = None,
    gradient: GRADIENT = "policy",
    split: SPLIT = "validation",
    problems: PROBLEMS = 32,
    group: GROUP = 8,
    seed: SEED = 0,
    rank: RANK = 4,
    memory: MEMORY = 1.0,
    json: Json = None,
    plot: PLOT = None,
) -> None:
    """Measure the spectrum of per-completion gradients, compare it with noise, and locate its leading directions."""
    place = _place(one_model(model_argument, model), ticket, checkpoint)
    sampling = _sampling(place, task, gradient, split, problems, group, seed, memory)
    _refuse_before_measuring(json, plot)
    from multiticket.research.theory.fisher import measured, spectrum

    result = spectrum(measured(sampling), rank)
    from multiticket.cli.theory_tables import print_spectrum

    give(result, json, lambda: print_spectrum(result))
    if plot is not None:
        from multiticket.research.report.figures import write_figures
        from multiticket.research.theory import plots

        write_figures([plots.spectra([("gradients", result)]), plots.growth([("gradients", result)])], plot)


def subspace(
    model_argument: MODEL = None,
    model: MODEL_OPTION = None,
    ticket: TICKET = None,
    checkpoint: CHECKPOINT = None,
    task: TASK = None,
    masks: Annotated[str, typer.Option(help="Masks to compare, separated by commas.")] = MASKS,
    densities: Annotated[str, typer.Option(help="Densities, separated by commas.")] = "0.1,0.01,0.001",
    mask_seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of each mask, from 0.")] = 3,
    gradient: GRADIENT = "policy",
    split: SPLIT = "validation",
    problems: PROBLEMS = 32,
    group: GROUP = 8,
    seed: SEED = 0,
    rank: RANK = 4,
    memory: MEMORY = 1.0,
    json: Json = None,
    plot: PLOT = None,
) -> None:
    """Measure how much of the gradients' geometry a mask keeps, and how much random sampling should lose."""
    place = _place(one_model(model_argument, model), ticket, checkpoint)
    sampling = _sampling(place, task, gradient, split, problems, group, seed, memory)
    dense = _densities(densities)
    _refuse_before_measuring(json, plot)
    from multiticket.research.theory.fisher import mean_over_seeds, measured, subspaces

    chosen = [mask.strip() for mask in masks.split(",") if mask.strip()]
    result = subspaces(measured(sampling), chosen, dense, mask_seeds, rank)
    means = mean_over_seeds(result["masks"])
    from multiticket.cli.theory_tables import print_subspaces

    give({**result, "means": means}, json, lambda: print_subspaces(result, means))
    if plot is not None:
        from multiticket.research.report.figures import write_figures
        from multiticket.research.theory import plots

        write_figures(plots.subspaces(result, means), plot)


def _place(model: str | None, ticket: Path | None, checkpoint: Path | None) -> str:
    """Where the weights are whose gradients are looked at."""
    given = [str(place) for place in (model, ticket, checkpoint) if place is not None]
    if len(given) > 1:
        raise ValueError(
            "Give one of MODEL, --ticket and --checkpoint: a ticket or checkpoint names its base."
        )
    if ticket is not None:
        from multiticket.runs.kept import ticket_file

        given = [str(ticket_file(ticket))]
    if checkpoint is not None and not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint {checkpoint}: give a run's checkpoints/step-N folder.")
    return given[0] if given else "tiny-qwen2"


def _sampling(
    model: str,
    task: str | None,
    gradient: str,
    split: str,
    problems: int,
    group: int,
    seed: int,
    memory: float,
) -> Sampling:
    if not memory > 0:
        raise ValueError(f"--memory must be a number of GiB above 0, not {memory:g}.")
    from multiticket.research.theory.fisher import Sampling

    return Sampling(model, task, gradient, split, problems, group, seed, int(memory * 2**30))


def _densities(text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--densities takes numbers separated by commas, not {text!r}.") from None
    for number in numbers:
        if not 0 < number <= 1:
            raise ValueError(f"A density must be above 0 and at most 1, not {number:g}.")
    return numbers


def _refuse_before_measuring(json: str | None, plot: Path | None) -> None:
    """What would fail after minutes of measuring fails now; and what libraries say while they load is silenced."""
    refuse_unwritable(json, plot)
    refuse_picture(plot)
