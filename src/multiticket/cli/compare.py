"""``multiticket compare``: two runs, or two sets of runs, on the same problems."""

from __future__ import annotations

from typing import Annotated

import typer

from multiticket.cli.outputs import Command, Json, give, refuse_unwritable

SIDE = "A run folder or a file of results; several separated by commas, or a quoted pattern."


def register(app: typer.Typer) -> None:
    app.command("compare", cls=Command)(compare)


def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help=SIDE)],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help=SIDE)],
    margin: Annotated[
        float, typer.Option(help="How much accuracy B may lose against A and still count as no worse.")
    ] = 0.02,
    json: Json = None,
) -> None:
    """Compare two runs problem by problem: the difference with its 95 % interval, and whether B is no worse than A."""
    refuse_unwritable(json)
    from multiticket.evaluate import comparison
    from multiticket.evaluate.problem_results import read_side
    from multiticket.research.report.tables import print_comparison

    result = comparison.compare(read_side(a), read_side(b), margin)
    give(result, json, lambda: print_comparison(result))
