"""The instruments' results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiticket.research.report.tables import percent, print_facts, print_table
from multiticket.research.study.page_section import Table

Result = Mapping[str, Any]


def print_spectrum(result: Result) -> None:
    print(about(result))
    figures = ("participation", "entropy", "energy95")
    ranks = [("gradients", result["effective_rank"]), ("noise of the same norms", result["noise_rank"])]
    rows: list[list[Any]] = [[name, *(f"{rank[figure]:.1f}" for figure in figures)] for name, rank in ranks]
    rows.append(["bound: samples", *[str(result["samples"])] * 3])
    if (beyond := result["population_rank"]) is not None:
        interval = f"{beyond['value']:.1f} ({beyond['low']:.1f} to {beyond['high']:.1f})"
        rows.append(["beyond the samples", interval, "", ""])
    columns = ["", "participation", "entropy", "95 % of energy"]
    print_table(Table(caption="Effective rank", columns=columns, rows=rows))
    print_table(
        Table.of(
            "Growth with samples",
            result["growth"],
            {
                "samples": lambda point: str(point["samples"]),
                "participation": lambda point: f"{point['rank']['participation']:.1f}",
                "of noise": lambda point: f"{point['noise']:.1f}",
                "entropy": lambda point: f"{point['rank']['entropy']:.1f}",
                "95 % of energy": lambda point: f"{point['rank']['energy95']:.1f}",
            },
        )
    )
    leading, values = result["leading"], result["eigenvalues"]
    shares = [percent(value / sum(values)) for value in values[: len(leading)]]
    rows = [["share of energy", "", "", *shares, ""]]
    for kind, first in leading[0].items():
        cells = [f"{v[kind]['coherence']:,.0f} | {v[kind]['participation']:.4f}" for v in leading]
        energy = result["energy"].get(kind, {"parameters": 1.0, "energy": 1.0})
        gaussian = f"{first['gaussian_coherence']:.0f} | {first['gaussian_participation']:.4f}"
        rows.append([kind, percent(energy["parameters"]), percent(energy["energy"]), *cells, gaussian])
    vectors = [f"v{number + 1}" for number in range(len(leading))]
    print_table(
        Table(
            caption="Leading eigenvectors: share of energy, then coherence | participation by kind of tensor",
            columns=["kind", "parameters", "all energy", *vectors, "Gaussian"],
            rows=rows,
        )
    )


def print_subspaces(result: Result, means: Sequence[Result]) -> None:
    print(about(result))

    def error(row: Result) -> str:
        ends = f" ({row['frobenius_low']:.3g} to {row['frobenius_high']:.3g})" if row["seeds"] > 1 else ""
        return f"{row['frobenius']:.3g}{ends}"

    print_table(
        Table.of(
            f"What masks keep; leading eigenspaces of rank {result['rank']}, by chance {result['chance_overlap']:.3f}",
            means,
            {
                "mask": lambda row: row["mask"],
                "density": lambda row: f"{row['density']:g}",
                "energy": lambda row: f"{100 * row['energy']:.3g} %",
                "Frobenius error": error,
                "predicted": lambda row: f"{row['predicted_frobenius']:.3g}",
                "operator error": lambda row: f"{row['operator']:.3g}",
                "alignment": lambda row: f"{row['alignment']:.3f}",
                "overlap": lambda row: f"{row['overlap']:.3f}",
                "smallest cosine": lambda row: f"{row['smallest_cosine']:.3f}",
            },
        )
    )
    refused = (f"{row['mask']} at {row['density']:g}: {row['reason']}" for row in result.get("refused", []))
    for reason in dict.fromkeys(refused):
        print(f"left out: {reason}")


def print_kl(run: Result) -> None:
    rows: list[list[Any]] = []
    for row in run["states"]:
        base, previous = row["from_base"], row["from_previous"]
        cells = [row["state"], f"{base['token']:.3g}", _interval(base), row["previous"]]
        rows.append([*cells, f"{previous['token']:.3g}", _interval(previous)])
    a_pair = ["a token", "a completion (95 %)"]
    print_table(
        Table(
            caption=f"{_name(run)}: KL in nats, over {_contexts(run)}",
            columns=["state", f"from base, {a_pair[0]}", a_pair[1], "from", *a_pair],
            rows=rows,
        )
    )


def print_kl_of_states(result: Result) -> None:
    kl = result["kl"]
    low, high = kl["token_interval"]
    facts = (
        ("before", result["before"]),
        ("after", result["after"]),
        ("nats a token", f"{kl['token']:.4g} ({low:.3g} to {high:.3g})"),
        ("nats a completion", _interval(kl)),
        ("largest of a token", f"{kl['largest_token']:.3g}"),
        ("contexts", f"{kl['tokens']} tokens of {kl['completions']} completions"),
    )
    print_facts(facts, f"KL(before || after) over {_contexts(result)}")


def print_updates(runs: Sequence[Result]) -> None:
    from multiticket.research.theory.run_update import matrix_means

    moves = [(run, kind, moved) for run in runs for kind, moved in run["moved"].items()]

    def only_first(text: str, kind: str) -> str:
        return text if kind == "all" else ""

    print_table(
        Table.of(
            "How far the weights moved",
            moves,
            {
                "run": lambda one: only_first(_name(one[0]), one[1]),
                "pass@1": lambda one: only_first(percent(one[0]["pass@1"]), one[1]),
                "kind": lambda one: one[1],
                "moved": lambda one: f"{100 * one[2]['moved'] / one[2]['numel']:.3g} %",
                "visible in bf16": lambda one: f"{100 * one[2]['visible'] / one[2]['numel']:.3g} %",
                "above |w|/256, of moved": lambda one: (
                    percent(one[2]["above"] / one[2]["moved"]) if one[2]["moved"] else ""
                ),
                "distance": lambda one: f"{one[2]['distance']:.3g}",
                "of the weights": lambda one: f"{100 * one[2]['relative']:.3g} %",
                "KL from base, a completion": lambda one: only_first(
                    _interval(one[0]["kl_from_base"]), one[1]
                ),
            },
        )
    )
    means = [(run, kind, mean) for run in runs for kind, mean in matrix_means(run["matrices"]).items()]

    def beside_shuffled(mean: Result, rank: str) -> str:
        return f"{percent(mean[rank])} ({percent(mean[f'{rank}_shuffled'])})"

    print_table(
        Table.of(
            "Directions of matrices' updates: ranks as shares of the full rank (of shuffled entries)",
            means,
            {
                "run": lambda one: only_first(_name(one[0]), one[1]),
                "kind": lambda one: one[1],
                "matrices": lambda one: str(one[2]["matrices"]),
                "numerical rank": lambda one: percent(one[2]["numerical_rank"]),
                "entropy rank": lambda one: beside_shuffled(one[2], "entropy"),
                "participation": lambda one: beside_shuffled(one[2], "participation"),
                "95 % of energy": lambda one: percent(one[2]["energy95"]),
                "left / chance": lambda one: f"{one[2]['left']:.2f}",
                "right / chance": lambda one: f"{one[2]['right']:.2f}",
                "both / chance": lambda one: f"{one[2]['both']:.2f}",
            },
        )
    )


def print_prediction(result: Result) -> None:
    print(about(result))

    def rate(row: Result) -> str:
        found = row["learning_rate"]
        return found if isinstance(found, str) else "not found" if found is None else f"{found:g}"

    print_table(
        Table.of(
            "Runs: accuracy after training, and what the mask kept before it",
            sorted(result["runs"], key=lambda row: -row["after"]),
            {
                "mask": lambda row: row["mask"],
                "density": lambda row: f"{row['density']:g}",
                "rate": rate,
                "pass@1": lambda row: percent(row["after"]),
                "energy": lambda row: f"{100 * row['energy']:.3g} %",
                "Frobenius error": lambda row: f"{row['frobenius']:.3g}",
                "alignment": lambda row: f"{row['alignment']:.3f}",
                "overlap": lambda row: f"{row['overlap']:.3f}",
                "run": _name,
            },
        )
    )
    steps = sorted({row["steps"] for row in result["runs"]})
    if len(steps) > 1:
        told = ", ".join(map(str, steps))
        print(f"These runs took different numbers of steps ({told}), which affects pass@1 too.")
    correlations = [
        [
            row["predictor"].replace("_", " "),
            f"{row['spearman']:+.2f}",
            f"{row['spearman_p']:.3g}",
            f"{row['kendall']:+.2f}",
            f"{row['kendall_p']:.3g}",
            f"{row['family_p']:.3g}",
        ]
        for row in result["correlations"]
    ]
    print_table(
        Table(
            caption=f"Rank correlation with pass@1 over {len(result['runs'])} runs",
            columns=["predictor", "Spearman", "p", "Kendall", "p", "p of the best among all"],
            rows=correlations,
        )
    )


def about(result: Result) -> str:
    """Whose gradients these are, in a sentence."""
    return (
        f"{result['gradient']} gradients of {result['samples']} of {result['rollouts']} completions "
        f"({result['problems']} {result['split']} problems of {result['task']}, seed {result['seed']}) of "
        f"{result['model']}, {result['parameters']:,} parameters"
    )


def _interval(kl: Result) -> str:
    low, high = kl["completion_interval"]
    return f"{kl['completion']:.4g} ({low:.3g} to {high:.3g})"


def _contexts(result: Result) -> str:
    return f"{result['group']} completions each of {result['problems']} {result['split']} problems of {result['task']}"


def _name(run: Result) -> str:
    """The folder's name: whole paths would not fit a table."""
    return Path(run["run"]).resolve().name
