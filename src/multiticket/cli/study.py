"""``multiticket study``: grids of runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiticket.cli.outputs import Command, Json, give, refuse_unwritable
from multiticket.runs.ranks import refuse_several

if TYPE_CHECKING:
    from multiticket.research.study.page_section import PageSection
    from multiticket.research.study.runner import RunState

FILE = Annotated[Path, typer.Argument(help="The study's YAML file.")]
FOLDER = Annotated[
    Path | None, typer.Option("--runs", "--output", help="The study's folder; default runs/NAME.")
]


def register(app: typer.Typer) -> None:
    study = typer.Typer(
        help="Run grids of experiments from one file, resume them, and report the results.",
        no_args_is_help=True,
    )
    study.command("run", cls=Command)(run)
    study.command("status", cls=Command)(status)
    study.command("collect", cls=Command)(collect)
    study.command("report", cls=Command)(report)
    study.command("rerun", cls=Command)(rerun)
    app.add_typer(study, name="study")


def run(
    file: FILE,
    runs: FOLDER = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    executor: Annotated[str, typer.Option(help="Where runs are done: local or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster; default: start a local one.")
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs that Ray reserves for a run.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs that Ray reserves for a run.")] = 0,
    json: Json = None,
) -> None:
    """Run a study, or resume it. Several processes can share the work."""
    from multiticket.research.study.executors import start_local
    from multiticket.research.study.grid import load

    if executor not in ("local", "ray"):
        raise ValueError(f"There is no executor {executor!r}: give local or ray.")
    refuse_several("study run")
    refuse_unwritable(json)
    study = load(file)
    folder = runs or Path("runs") / study.name
    if executor == "ray":
        from multiticket.research.study.ray_cluster import start_ray

        stop, alive = start_ray(study, folder, cpus, gpus, address)
    else:
        stop, alive = start_local(
            file, folder, workers, lambda said: print(said, file=sys.stderr, flush=True)
        )
    try:
        states = _follow(study.runs, folder, alive, workers)
    except KeyboardInterrupt:
        print("Stopping: each run saves its current step; the same command continues.", file=sys.stderr)
        raise
    finally:
        stop()
    failed = [state for state in states if state.state == "failed"]

    def print_failures() -> None:
        for state in failed:
            reason = (folder / state.run.name / "error.txt").read_text(encoding="utf-8").splitlines()[0]
            print(f"{state.run.name} failed: {reason}")

    give(_rows(states), json, print_failures)
    if failed or any(state.state != "done" for state in states):
        raise typer.Exit(1)


def status(file: FILE, runs: FOLDER = None, json: Json = None) -> None:
    """Show how many runs are done, running, failed and waiting."""
    from multiticket.research.study.grid import load
    from multiticket.research.study.runner import state_of

    refuse_unwritable(json)
    study = load(file)
    states = [state_of(runs or Path("runs") / study.name, one) for one in study.runs]

    def print_states() -> None:
        for state in states:
            print(f"{state.state:8} {state.step:5}/{state.run.config.steps:<5} {state.run.name}")
        print(_summary(states))

    give(_rows(states), json, print_states)


def _rows(states: Sequence[RunState]) -> list[dict[str, Any]]:
    return [{"run": s.run.name, "state": s.state, "step": s.step, "of": s.run.config.steps} for s in states]


def collect(
    file: FILE,
    runs: Annotated[Path | None, typer.Option(help="The study's folder; default runs/NAME.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--to", help="The table; default runs.parquet in the study's folder."),
    ] = None,
    json: Json = None,
) -> None:
    """Write all finished runs to one Parquet table."""
    from multiticket.research.study.collect import TABLE, records, write_parquet
    from multiticket.research.study.grid import load

    refuse_unwritable(json)
    study = load(file)
    if output is not None and output.is_dir():  # the study's folder, as --output was before there was --runs
        runs, output = runs or output, output / TABLE
    folder = runs or Path("runs") / study.name
    rows = records(study, folder)
    path = output or folder / TABLE
    write_parquet(rows, path)
    found = {"table": str(path), "finished": len(rows), "runs": len(study.runs)}
    give(found, json, lambda: print(f"{path}: {len(rows)} of {len(study.runs)} runs"))


def report(
    file: Annotated[
        Path, typer.Argument(help="The study's YAML file; or a report's folder, to draw it again.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where the report goes; default: report, in the study's folder.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="The study's folder; default runs/NAME.")] = None,
    json: Json = None,
) -> None:
    """Answer the study's questions from its finished runs: write an HTML page, figures, JSON, and a table of runs."""
    refuse_unwritable(json)
    if file.is_dir():
        if output or runs:
            raise ValueError(f"The report in {file} is redrawn in place: omit --output and --runs.")
        from multiticket.research.report.study_page import redraw

        _give_verdicts(*redraw(file), json)
        return
    import shlex

    from multiticket.research.study.answers import answers
    from multiticket.research.study.collect import TABLE, records, write_parquet
    from multiticket.research.study.grid import load

    study = load(file)
    folder = runs or Path("runs") / study.name
    given = ["--output", str(runs)] if runs else []
    place = output or folder / "report"
    sections = answers(study, folder, shlex.join(["multiticket", "study", "run", str(file), *given]), place)
    from multiticket.research.report.study_page import write_report

    again = ["multiticket", "study", "report", str(file)]
    again += ["--output", str(output)] if output else []
    again += ["--runs", str(runs)] if runs else []
    if rows := records(study, folder):
        write_parquet(rows, place / TABLE)
    _give_verdicts(sections, write_report(sections, place, study.title, shlex.join(again)), json)


def rerun(
    folder: Annotated[
        Path, typer.Argument(help="A study's report, or another folder with its runs.parquet.")
    ],
    run: Annotated[str, typer.Argument(help="The run's name, as the page has it.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the new run; default: runs/again/RUN.")
    ] = None,
    json: Json = None,
) -> None:
    """Repeat one run of a finished study, with the settings in its table."""
    from multiticket.research.study.collect import read_run
    from multiticket.runs.folder import RunFolder

    refuse_several("study rerun")
    refuse_unwritable(json)
    config, before = read_run(folder, run)
    place = output or Path("runs") / "again" / run
    RunFolder(place).refuse_to_overwrite()
    from multiticket.train.callbacks.interrupt import RunInterrupted
    from multiticket.train.run import run_training

    try:
        result = run_training(config, place)
    except RunInterrupted as stop:
        print(f"multiticket: {stop}", file=sys.stderr)
        raise typer.Exit(stop.code) from None
    from multiticket.research.report.tables import print_result, with_interval

    def print_both() -> None:
        print_result(result, place)
        print(f"pass@1 after, in the study: {with_interval(before['eval']['after'])}")

    give({**result, "in_the_study": before["eval"]["after"]}, json, print_both)


def _give_verdicts(sections: Sequence[PageSection], page: Path, json: str | None) -> None:
    def print_verdicts() -> None:
        for section in sections:
            print(f"{section.verdict or '':19} {section.heading}")
        print(page)

    said = [{"heading": section.heading, "verdict": section.verdict} for section in sections]
    give({"page": str(page), "verdicts": said}, json, print_verdicts)


def _follow(runs: Any, folder: Path, alive: Any, workers: int) -> list[RunState]:
    """Say on standard error how far it is, whenever a run ends and at least once a minute, until nobody works."""
    from multiticket.research.study.runner import state_of, time_left

    told, said = None, 0.0
    done: dict[str, RunState] = {}  # hundreds, perhaps, and not to be read again and again
    while True:
        working = alive()
        states = [done.get(one.name) or state_of(folder, one) for one in runs]
        done = {state.run.name: state for state in states if state.state == "done"}
        summary = _summary(states)
        if summary != told or time.monotonic() - said > 60:
            left = time_left(states, workers)
            more = "" if left is None else f", about {left / 60:.0f} min left"
            print(summary + more, file=sys.stderr, flush=True)
            told, said = summary, time.monotonic()
        if not working:
            return states
        time.sleep(2)


def _summary(states: list[RunState]) -> str:
    counts = {
        name: sum(state.state == name for state in states)
        for name in ("done", "running", "failed", "waiting")
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
