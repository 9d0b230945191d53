"""The instruments' results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from multiticket.report.tables import percent, wide_console


def print_spectrum(result: Mapping[str, Any]) -> None:
    print(about(result))
    table = _table("Effective rank", "", "participation", "entropy", "95 % of energy")
    for name, key in (("gradients", "effective_rank"), ("noise of the same norms", "noise_rank")):
        rank = result[key]
        table.add_row(name, *(f"{rank[figure]:.1f}" for figure in ("participation", "entropy", "energy95")))
    table.add_row("bound: samples", *[str(result["samples"])] * 3)
    population = result["population_rank"]
    interval = f"{population['value']:.1f} ({population['low']:.1f} to {population['high']:.1f})"
    table.add_row("beyond the samples", interval, "", "")
    _print(table)

    table = _table("Growth with samples", "samples", "participation", "of noise", "entropy", "95 % of energy")
    for point in result["growth"]:
        rank = point["rank"]
        figures = (rank["participation"], point["noise"], rank["entropy"], rank["energy95"])
        table.add_row(str(point["samples"]), *(f"{figure:.1f}" for figure in figures))
    _print(table)

    eigenvalues = result["eigenvalues"]
    columns = [f"v{number + 1}" for number in range(len(result["leading"]))]
    shares = [percent(value / sum(eigenvalues)) for value in eigenvalues[: len(columns)]]
    table = _table(
        "Leading eigenvectors: share of energy, then coherence | participation by kind of tensor",
        "kind",
        "parameters",
        "all energy",
        *columns,
        "Gaussian",
    )
    table.add_row("share of energy", "", "", *shares, "")
    for kind, first in result["leading"][0].items():
        cells = [f"{v[kind]['coherence']:,.0f} | {v[kind]['participation']:.4f}" for v in result["leading"]]
        energy = result["energy"].get(kind, {"parameters": 1.0, "energy": 1.0})
        gaussian = f"{first['gaussian_coherence']:.0f} | {first['gaussian_participation']:.4f}"
        table.add_row(kind, percent(energy["parameters"]), percent(energy["energy"]), *cells, gaussian)
    _print(table)


def print_subspaces(result: Mapping[str, Any], means: Sequence[Mapping[str, Any]]) -> None:
    print(about(result))
    table = _table(
        f"What masks keep; leading eigenspaces of rank {result['rank']}, by chance {result['chance_overlap']:.3f}",
        "mask",
        "density",
        "energy",
        "Frobenius error",
        "predicted",
        "operator error",
        "alignment",
        "overlap",
        "smallest cosine",
    )
    for row in means:
        spread = f" ({row['frobenius_low']:.3g} to {row['frobenius_high']:.3g})" if row["seeds"] > 1 else ""
        table.add_row(
            row["mask"],
            f"{row['density']:g}",
            f"{100 * row['energy']:.3g} %",
            f"{row['frobenius']:.3g}{spread}",
            f"{row['predicted_frobenius']:.3g}",
            f"{row['operator']:.3g}",
            f"{row['alignment']:.3f}",
            f"{row['overlap']:.3f}",
            f"{row['smallest_cosine']:.3f}",
        )
    _print(table)
    for reason in dict.fromkeys(
        f"{row['mask']} at {row['density']:g}: {row['reason']}" for row in result.get("refused", [])
    ):
        print(f"left out: {reason}")


def about(result: Mapping[str, Any]) -> str:
    """Whose gradients these are, in a sentence."""
    return (
        f"{result['gradient']} gradients of {result['samples']} of {result['rollouts']} completions "
        f"({result['problems']} {result['split']} problems of {result['task']}, seed {result['seed']}) of "
        f"{result['model']}, {result['parameters']:,} parameters"
    )


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(table: Table) -> None:
    wide_console().print(table)
