"""The command line: parse, call, print. Commands import torch when they run, so that ``--help`` does not wait."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from multiticket import __version__
from multiticket.cli import bench, compare, demo, evaluate, hub, plan, serve, study, theory, tickets, train
from multiticket.errors import raised_by
from multiticket.quiet import hush
from multiticket.runs import ranks

app = typer.Typer(
    name="multiticket",
    help="Train a random sparse part of a language model by reinforcement learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train.register(app)
evaluate.register(app)
compare.register(app)
plan.register(app)
demo.register(app)
bench.register(app)
tickets.register(app)
hub.register(app)
serve.register(app)
study.register(app)
theory.register(app)

TRAIN_LIBRARIES = ("transformers", "trl", "datasets", "accelerate", "matplotlib", "tensorboard")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"multiticket {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run a command. A user's mistake is one sentence on standard error and exit code 2; a bug keeps its traceback."""
    sys.path.append("")  # last, so that "my_module:my_task" is found in the current folder and hides nothing
    if "--verbose" not in (sys.argv[1:] if arguments is None else arguments):
        hush()
    try:
        code = app(args=arguments, prog_name="multiticket", standalone_mode=False)
    except KeyboardInterrupt:
        _say("Interrupted.")
        sys.exit(130)
    except Exception as error:
        code = _failed(error)
    ranks.here().leave()
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception) -> int:
    """The code to exit with; raises what is no mistake of a user's."""
    name = type(error).__name__
    if name == "NoArgsIsHelpError":  # which has printed it
        return 0
    if name == "RunInterrupted":  # asked to stop by a signal, in whichever command
        if ranks.here().first:
            _say(str(error))
        return int(getattr(error, "code", 1))
    if name == "OtherRankFailed":
        if ranks.here().first:
            _say(str(error))
        return 1
    sentence = mistake(error)
    if sentence is None:
        raise error
    if ranks.here().tells(error) and _said_once(error):
        _say(sentence)
    return 2


def _said_once(error: Exception) -> bool:
    """Whether this process is the one to tell of words that were mistyped, which all processes of a launcher see."""
    return not hasattr(error, "format_message") or os.environ.get("RANK", "0") == "0"


def mistake(error: Exception, *programs: str) -> str | None:
    """The sentence that tells a user what went wrong, or None where it is the program that is wrong.

    Args:
        programs: modules that are ours though they are none of the package's.
    """
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own usage errors
        text = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "multiticket"
        return f"{text if text.endswith(('.', '?')) else f'{text}.'} See '{command} --help'."
    if type(error).__name__ == "Abort":
        return "Aborted."
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_LIBRARIES:
        return f"This command needs {error.name}: pip install 'multiticket[train]'."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}."
    if isinstance(error, ValueError) and raised_by(error.__traceback__, "multiticket", *programs):
        return str(error)
    return None


def _say(sentence: str) -> None:
    print(f"multiticket: {sentence}", file=sys.stderr)
