"""``multiticket study``: grids of runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from multiticket.research.study.page_section import Section
    from multiticket.research.study.runner import RunState

FILE = Annotated[Path, typer.Argument(help="The study's YAML file.")]
FOLDER = Annotated[Path | None, typer.Option("--output", help="Its folder; default runs/NAME.")]


def register(app: typer.Typer) -> None:
    study = typer.Typer(
        help="Grids of runs from one file: done, resumed, gathered, judged.", no_args_is_help=True
    )
    study.command("run")(run)
    study.command("status")(status)
    study.command("collect")(collect)
    study.command("report")(report)
    study.command("rerun")(rerun)
    app.add_typer(study, name="study")


def run(
    file: FILE,
    output: FOLDER = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster's; default: a local one.")
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs that Ray reserves for a run.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs that Ray reserves for a run.")] = 0,
) -> None:
    """Do what is missing of a study. Started twice, both share the work; stopped, it goes on where it was."""
    from multiticket.research.study.executors import start_local
    from multiticket.research.study.grid import load

    if executor not in ("local", "ray"):
        raise ValueError(f"There is no executor {executor!r}: give local or ray.")
    study = load(file)
    folder = output or Path("runs") / study.name
    if executor == "ray":
        from multiticket.research.study.ray_cluster import start_ray

        stop, alive = start_ray(study, folder, cpus, gpus, address)
    else:
        stop, alive = start_local(file, folder, workers)
    try:
        states = _follow(study.runs, folder, alive, workers)
    except KeyboardInterrupt:
        print(
            "Stopping: each run ends with its step and saves it; the same command goes on.", file=sys.stderr
        )
        raise
    finally:
        stop()
    failed = [state for state in states if state.state == "failed"]
    for state in failed:
        reason = (folder / state.run.name / "error.txt").read_text(encoding="utf-8").splitlines()[0]
        print(f"{state.run.name} failed: {reason}")
    if failed or any(state.state != "done" for state in states):
        raise typer.Exit(1)


def status(
    file: FILE, output: FOLDER = None, as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """How far a study is: done, running, failed and waiting runs."""
    from multiticket.research.study.grid import load
    from multiticket.research.study.runner import state_of

    study = load(file)
    states = [state_of(output or Path("runs") / study.name, one) for one in study.runs]
    if as_json:
        rows = [
            {"run": s.run.name, "state": s.state, "step": s.step, "of": s.run.config.steps} for s in states
        ]
        print(json.dumps(rows, indent=2))
        return
    for state in states:
        print(f"{state.state:8} {state.step:5}/{state.run.config.steps:<5} {state.run.name}")
    print(_summary(states))


def collect(
    file: FILE,
    output: FOLDER = None,
    to: Annotated[Path | None, typer.Option(help="The table; default FOLDER/runs.parquet.")] = None,
) -> None:
    """Write one Parquet table of all finished runs."""
    from multiticket.research.study.collect import records, write_parquet
    from multiticket.research.study.grid import load

    study = load(file)
    folder = output or Path("runs") / study.name
    rows = records(study, folder)
    path = to or folder / "runs.parquet"
    write_parquet(rows, path)
    print(f"{path}: {len(rows)} of {len(study.runs)} runs")


def report(
    file: Annotated[
        Path, typer.Argument(help="The study's YAML file, or the folder of a report, to draw it again.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where the report goes; default: report, in the study's folder.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="The study's folder; default runs/NAME.")] = None,
) -> None:
    """Answer the study's questions from its finished runs: an HTML page, its figures, JSON, and a table of the runs."""
    if file.is_dir():
        if output or runs:
            raise ValueError(
                f"The report in {file} is drawn again where it is: leave --output and --runs out."
            )
        from multiticket.research.report.study_page import redraw

        _print_verdicts(*redraw(file))
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
    _print_verdicts(sections, write_report(sections, place, study.title, shlex.join(again)))


def rerun(
    folder: Annotated[
        Path, typer.Argument(help="A study's report, or another folder with its runs.parquet.")
    ],
    run: Annotated[str, typer.Argument(help="The run's name, as the page has it.")],
    output: Annotated[Path | None, typer.Option(help="Its folder; default runs/again/RUN.")] = None,
) -> None:
    """Do one run of a finished study again, from the settings in its table."""
    from multiticket.research.study.collect import read_run
    from multiticket.runs.folder import RunFolder

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

    print_result(result, place)
    print(f"pass@1 after, in the study: {with_interval(before['eval']['after'])}")


def _print_verdicts(sections: Sequence[Section], page: Path) -> None:
    for section in sections:
        print(f"{section.verdict or '':19} {section.heading}")
    print(page)


def _follow(runs: Any, folder: Path, alive: Any, workers: int) -> list[RunState]:
    """Say on standard error how far it is, whenever a run ends and at least once a minute, until nobody works."""
    from multiticket.research.study.runner import state_of, time_left

    told, said = None, 0.0
    while True:
        working = alive()
        states = [state_of(folder, one) for one in runs]
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
