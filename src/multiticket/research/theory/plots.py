"""The instruments' results as figures: data that `report.figures` draws, in a file or in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiticket.research.study.page_section import Figure, Mark, Series

Named = Sequence[tuple[str, Mapping[str, Any]]]
"""Results with a name each: states of a model, or one without a name."""


def spectra(states: Named) -> Figure:
    """Eigenvalues' shares of the energy, of `fisher.spectrum` for each state."""
    series = []
    for name, spectrum in states:
        total = sum(spectrum["eigenvalues"])
        shares = [value / total for value in spectrum["eigenvalues"] if value > 1e-9 * total]
        series.append(Series(name=name, x=[float(i + 1) for i in range(len(shares))], y=shares))
    tops = "; ".join(f"{one.name} {100 * one.y[0]:.0f} %" for one in series)
    return Figure(
        kind="chart",
        caption="Spectrum of the gradients: each eigenvalue's share of the energy.",
        alternative=f"Shares fall with the number of the eigenvalue; the largest: {tops}.",
        x_label="eigenvalue",
        y_label="share of energy",
        x_log=True,
        y_log=True,
        series=series,
    )


def growth(states: Named) -> Figure:
    """The effective rank over the number of samples, beside noise of the first state's norms."""
    series = []
    for name, spectrum in states:
        points = spectrum["growth"]
        ranks = [point["rank"]["participation"] for point in points]
        series.append(Series(name=name, x=[float(point["samples"]) for point in points], y=ranks))
    noise = [point["noise"] for point in states[0][1]["growth"]]
    series.append(Series(name=f"noise, {states[0][0]}", x=series[0].x, y=noise))
    ends = "; ".join(f"{one.name} {one.y[-1]:.0f}" for one in series)
    return Figure(
        kind="chart",
        caption="The effective rank that fewer samples show; it is bounded by their number.",
        alternative=f"Participation grows with the number of samples; with all of them: {ends}.",
        x_label="samples",
        y_label="participation",
        x_log=True,
        y_log=True,
        series=series,
    )


def subspaces(result: Mapping[str, Any], means: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Error of the masked Gram matrix, and overlap of the leading eigenspaces, over density (`fisher.subspaces`)."""
    errors, overlaps = [], []
    for mask in dict.fromkeys(row["mask"] for row in means):
        rows = sorted((row for row in means if row["mask"] == mask), key=lambda row: row["density"])
        x = [row["density"] for row in rows]
        errors.append(Series(name=mask, x=x, y=[row["frobenius"] for row in rows]))
        overlaps.append(Series(name=mask, x=x, y=[row["overlap"] for row in rows]))
        if mask == "random":
            predicted = [row["predicted_frobenius"] for row in rows]
            errors.append(Series(name="random, predicted", x=x, y=predicted))
    axes: dict[str, Any] = {"kind": "chart", "x_label": "density", "x_log": True}
    overlap = f"overlap of the {result['rank']} leading directions"
    return [
        Figure(
            **axes,
            caption="Error of the masked Gram matrix.",
            alternative="Relative Frobenius error by mask and density.",
            y_label="relative Frobenius error",
            y_log=True,
            series=errors,
        ),
        Figure(
            **axes,
            caption="Leading eigenspaces under masks.",
            alternative="Overlap by mask and density.",
            y_label=overlap,
            series=overlaps,
            marks=[Mark(at=result["chance_overlap"], label="chance")],
        ),
    ]


def kl(runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """KL from the base, and from the checkpoint before, over steps, with 95 % intervals (`trajectory.kl_of_run`)."""
    figures = []
    for key, label in (
        ("from_base", "base || checkpoint"),
        ("from_previous", "checkpoint before || checkpoint"),
    ):
        series = [
            Series.with_ends(
                Path(run["run"]).name,
                [int(state["state"].removeprefix("step-")) for state in run["states"]],
                [state[key]["completion"] for state in run["states"]],
                [state[key]["completion_interval"] for state in run["states"]],
            )
            for run in runs
        ]
        figures.append(
            Figure(
                kind="chart",
                caption=f"KL({label}).",
                alternative="KL over optimiser steps, one line a run.",
                x_label="optimiser step",
                y_label=f"KL({label}), nats a completion",
                series=series,
            )
        )
    return figures


def updates(runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Each matrix's entropy rank beside that of its entries shuffled, and its energy in the principal directions."""
    ranks, energies = [], []
    for run in runs:
        name, rows = Path(run["run"]).name, [row for row in run["matrices"].values() if row]
        full = [min(row["rows"], row["columns"]) for row in rows]
        x, y = (
            [row[key]["entropy"] / side for row, side in zip(rows, full, strict=True)]
            for key in ("shuffled", "effective")
        )
        ranks.append(Series(name=name, x=x, y=y, joined=False))
        chance, left = [row["top"] / row["rows"] for row in rows], [row["left"] for row in rows]
        energies.append(Series(name=name, x=chance, y=left, joined=False))
    equal = Series(name="equal", x=[0.0, 1.0], y=[0.0, 1.0])
    return [
        Figure(
            kind="chart",
            caption="Entropy rank of each matrix's update.",
            alternative="Rank of the update over that of shuffled entries.",
            x_label="entropy rank of shuffled entries / full rank",
            y_label="of the update / full rank",
            series=[*ranks, equal],
        ),
        Figure(
            kind="chart",
            caption="Energy of each matrix's update in its principal directions.",
            alternative="Energy in the top left directions over chance.",
            x_label="chance: r / rows",
            y_label="update's energy in the top r left directions",
            series=[*energies, equal],
        ),
    ]


def prediction(result: Mapping[str, Any]) -> list[Figure]:
    """Accuracy after training over the two strongest predictors (`prediction.prediction`)."""
    figures = []
    for row in sorted(result["correlations"], key=lambda row: -abs(row["spearman"]))[:2]:
        said = f"Spearman {row['spearman']:+.2f}, p = {row['spearman_p']:.3g}"
        series = []
        for mask in dict.fromkeys(run["mask"] for run in result["runs"]):
            runs = [run for run in result["runs"] if run["mask"] == mask]
            x, y = [run[row["predictor"]] for run in runs], [run["after"] for run in runs]
            series.append(Series(name=mask, x=x, y=y, joined=False))
        figures.append(
            Figure(
                kind="chart",
                caption=f"{said}.",
                alternative=said,
                x_label=row["predictor"].replace("_", " "),
                y_label="pass@1 after training",
                series=series,
            )
        )
    return figures
