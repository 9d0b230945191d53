"""The instruments' results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from multiticket.research.report.tables import percent, wide_console


def print_spectrum(result: Mapping[str, Any]) -> None:
    print(about(result))
    table = _table("Effective rank", "", "participation", "entropy", "95 % of energy")
    for name, key in (("gradients", "effective_rank"), ("noise of the same norms", "noise_rank")):
        rank = result[key]
        table.add_row(name, *(f"{rank[figure]:.1f}" for figure in ("participation", "entropy", "energy95")))
    table.add_row("bound: samples", *[str(result["samples"])] * 3)
    population = result["population_rank"]
    if population is not None:
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


def print_kl(run: Mapping[str, Any]) -> None:
    table = _table(
        f"{_name(run)}: KL in nats, over {_contexts(run)}",
        "state",
        "from base, a token",
        "a completion (95 %)",
        "from",
        "a token",
        "a completion (95 %)",
    )
    for row in run["states"]:
        base, previous = row["from_base"], row["from_previous"]
        cells = [f"{base['token']:.3g}", _interval(base), row["previous"]]
        table.add_row(row["state"], *cells, f"{previous['token']:.3g}", _interval(previous))
    _print(table)


def print_kl_of_states(result: Mapping[str, Any]) -> None:
    kl = result["kl"]
    low, high = kl["token_interval"]
    table = Table(title=f"KL(before || after) over {_contexts(result)}", box=box.SIMPLE, show_header=False)
    for row in (
        ("before", result["before"]),
        ("after", result["after"]),
        ("nats a token", f"{kl['token']:.4g} ({low:.3g} to {high:.3g})"),
        ("nats a completion", _interval(kl)),
        ("largest of a token", f"{kl['largest_token']:.3g}"),
        ("contexts", f"{kl['tokens']} tokens of {kl['completions']} completions"),
    ):
        table.add_row(*row)
    _print(table)


def _interval(kl: Mapping[str, Any]) -> str:
    low, high = kl["completion_interval"]
    return f"{kl['completion']:.4g} ({low:.3g} to {high:.3g})"


def _contexts(result: Mapping[str, Any]) -> str:
    return f"{result['group']} completions each of {result['problems']} {result['split']} problems of {result['task']}"


def print_updates(runs: Sequence[Mapping[str, Any]]) -> None:
    from multiticket.research.theory.run_update import matrix_means

    table = _table(
        "How far the weights moved",
        "run",
        "pass@1",
        "kind",
        "moved",
        "visible in bf16",
        "above |w|/256, of moved",
        "distance",
        "of the weights",
        "KL from base, a completion",
    )
    for run in runs:
        for kind, moved in run["moved"].items():
            first = kind == "all"
            table.add_row(
                _name(run) if first else "",
                percent(run["pass@1"]) if first else "",
                kind,
                f"{100 * moved['moved'] / moved['numel']:.3g} %",
                f"{100 * moved['visible'] / moved['numel']:.3g} %",
                percent(moved["above"] / moved["moved"]) if moved["moved"] else "",
                f"{moved['distance']:.3g}",
                f"{100 * moved['relative']:.3g} %",
                _interval(run["kl_from_base"]) if first else "",
            )
    _print(table)
    table = _table(
        "Directions of matrices' updates: ranks as shares of the full rank (of shuffled entries)",
        "run",
        "kind",
        "matrices",
        "numerical rank",
        "entropy rank",
        "participation",
        "95 % of energy",
        "left / chance",
        "right / chance",
        "both / chance",
    )
    for run in runs:
        for kind, mean in matrix_means(run["matrices"]).items():
            table.add_row(
                _name(run) if kind == "all" else "",
                kind,
                str(mean["matrices"]),
                percent(mean["numerical_rank"]),
                f"{percent(mean['entropy'])} ({percent(mean['entropy_shuffled'])})",
                f"{percent(mean['participation'])} ({percent(mean['participation_shuffled'])})",
                percent(mean["energy95"]),
                *(f"{mean[side]:.2f}" for side in ("left", "right", "both")),
            )
    _print(table)


def print_prediction(result: Mapping[str, Any]) -> None:
    print(about(result))
    table = _table(
        "Runs: accuracy after training, and what the mask kept before it",
        "mask",
        "density",
        "rate",
        "pass@1",
        "energy",
        "Frobenius error",
        "alignment",
        "overlap",
        "run",
    )
    for row in sorted(result["runs"], key=lambda row: -row["after"]):
        rate = row["learning_rate"]
        table.add_row(
            row["mask"],
            f"{row['density']:g}",
            rate if isinstance(rate, str) else f"{rate:g}",
            percent(row["after"]),
            f"{100 * row['energy']:.3g} %",
            f"{row['frobenius']:.3g}",
            f"{row['alignment']:.3f}",
            f"{row['overlap']:.3f}",
            _name(row),
        )
    _print(table)
    steps = sorted({row["steps"] for row in result["runs"]})
    if len(steps) > 1:
        print(
            f"These runs took different numbers of steps ({', '.join(map(str, steps))}), which tells in pass@1 too."
        )
    table = _table(
        f"Rank correlation with pass@1 over {len(result['runs'])} runs",
        "predictor",
        "Spearman",
        "p",
        "Kendall",
        "p",
        "p of the best among all",
    )
    for row in result["correlations"]:
        table.add_row(
            row["predictor"].replace("_", " "),
            f"{row['spearman']:+.2f}",
            f"{row['spearman_p']:.3g}",
            f"{row['kendall']:+.2f}",
            f"{row['kendall_p']:.3g}",
            f"{row['family_p']:.3g}",
        )
    _print(table)


def about(result: Mapping[str, Any]) -> str:
    """Whose gradients these are, in a sentence."""
    return (
        f"{result['gradient']} gradients of {result['samples']} of {result['rollouts']} completions "
        f"({result['problems']} {result['split']} problems of {result['task']}, seed {result['seed']}) of "
        f"{result['model']}, {result['parameters']:,} parameters"
    )


def _name(run: Mapping[str, Any]) -> str:
    """The folder's name: whole paths would not fit a table."""
    return Path(run["run"]).resolve().name


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(table: Table) -> None:
    wide_console().print(table)
