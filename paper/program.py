"""What the programs in ``paper/`` share: mistakes as sentences, and a section as text and as a file."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from multiticket.cli import mistake
from multiticket.quiet import hush
from multiticket.research.report.tables import markdown
from multiticket.research.study.page_section import PageSection, write_section

if TYPE_CHECKING:
    from multiticket.research.theory.fisher import Sampling


def run_program(main: Callable[[], None]) -> None:
    """`main`, with a user's mistake as one sentence on standard error and exit code 2, as a command has it."""
    hush()
    sys.path.append("")  # last, so that a task "my_module:my_task" is found in the current folder
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        modules = (path.stem for path in Path(__file__).parent.glob("*.py"))
        sentence = mistake(error, main.__module__, *modules)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        sys.exit(2)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def program_parser(text: str, section: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, with the option ``--section`` for the file that is written."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--section",
        type=Path,
        default=Path("docs/results/sections") / f"{section}.json",
        help="the report's section, written here (%(default)s)",
    )
    return parser


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options of the gradients that are looked at."""
    parser.add_argument("--split", default="validation")
    parser.add_argument("--problems", type=int, default=64, help="answered by each state (%(default)s)")
    parser.add_argument("--group", type=int, default=8, help="completions of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--rank", type=int, default=4, help="leading directions looked at")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB of gradients at once")


def sampling(options: argparse.Namespace, model: str = "", task: str | None = None) -> Sampling:
    """The gradients of a state that `add_sampling`'s options ask for."""
    from multiticket.research.theory.fisher import Sampling

    memory = int(options.memory * 2**30)
    return Sampling(
        model, task, "policy", options.split, options.problems, options.group, options.seed, memory
    )


def command_line(
    parser: argparse.ArgumentParser, options: argparse.Namespace, runs: str = "runs/evidence"
) -> str:
    """The command that makes a section again: every option that is no default, and folders as the documentation
    calls them.

    Args:
        runs: what stands for the folder given as ``--runs``.
    """
    words = ["python", f"paper/{parser.prog}"]
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        if not action.option_strings or value == action.default or action.dest in ("help", "jobs"):
            continue
        if action.type is Path:
            words += [action.option_strings[0], runs] if action.dest == "runs" else []
        else:
            values = value if isinstance(value, list) else [value]
            words += [action.option_strings[0], *map(str, values)]
    return shlex.join(words)


def section_text(section: PageSection) -> str:
    """Markdown: claim, verdict, answer, all tables and notes; figures are left to the report."""
    verdict = f"**{section.verdict}.** " if section.verdict else ""
    parts = [f"## {section.heading}", f"{verdict}{section.answer}", f"n: {section.n}" if section.n else ""]
    parts += [f"{table.caption}\n\n{markdown(table)}" for table in section.tables]
    parts += [
        "\n".join(f"- {note}" for note in section.notes),
        f"`{section.command}`" * bool(section.command),
    ]
    return "\n\n".join(part for part in parts if part)


def finish(section: PageSection, path: Path) -> None:
    """Print a section and write it."""
    print(section_text(section))
    write_section(path, section)
    say(f"{path} is written.")
