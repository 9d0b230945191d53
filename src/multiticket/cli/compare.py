"""``multiticket compare``: two runs, or two sets of runs, on the same problems."""

from __future__ import annotations

import json
from typing import Annotated

import typer

SIDE = "Run folder or file of results; several with commas between, or a pattern in quotes."


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)


def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help=SIDE)],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help=SIDE)],
    margin: Annotated[
        float, typer.Option(help="Accuracy that B may lose against A and still count as no worse.")
    ] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """B against A, problem by problem: the difference with its 95 % interval, and whether B is no worse."""
    from multiticket.evaluate import comparison
    from multiticket.evaluate.problem_results import read_side

    result = comparison.compare(read_side(a), read_side(b), margin)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        from multiticket.research.report.comparison_table import print_comparison

        print_comparison(result)
