"""The instruments' results as pictures; the file's ending says the format (svg, png, pdf)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multiticket.ticket.atomic import replacing

COLOURS = ("#0969da", "#e36209", "#1a7f37", "#8250df", "#cf222e", "#57606a", "#bf3989", "#9a6700")


@contextmanager
def _figure(path: Path, columns: int) -> Iterator[Any]:
    """The axes of a picture of `columns` panels, which is written whole when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks: Any = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context({**looks, "svg.hashsalt": "theory"}):
        figure, axes = plt.subplots(1, columns, figsize=(5.2 * columns, 4.2), layout="constrained")
        yield figure, axes
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        with replacing(path) as file:
            figure.savefig(file, dpi=150, format=path.suffix[1:], metadata=metadata)
        plt.close(figure)


def draw_spectrum(result: Mapping[str, Any], path: Path) -> None:
    """Eigenvalues' shares of the energy, and effective rank over the number of samples beside noise."""
    with _figure(path, 2) as (_, (values, growing)):
        total = sum(result["eigenvalues"])
        shares = [value / total for value in result["eigenvalues"] if value > 1e-9 * total]
        values.plot(range(1, len(shares) + 1), shares, ".-", color=COLOURS[0])
        values.set(xlabel="eigenvalue", ylabel="share of energy", xscale="log", yscale="log")
        values.set_title(f"{result['gradient']} gradients, {result['samples']} completions", loc="left")
        samples = [point["samples"] for point in result["growth"]]
        ranks = [point["rank"]["participation"] for point in result["growth"]]
        growing.plot(samples, ranks, "o-", color=COLOURS[0], label="gradients")
        noise = [point["noise"] for point in result["growth"]]
        growing.plot(samples, noise, "s--", color=COLOURS[1], label="noise of the same norms")
        growing.plot(samples, samples, ":", color="#57606a", label="bound: samples")
        growing.set(xlabel="samples", ylabel="participation ratio", xscale="log", yscale="log")
        growing.set_xticks(samples, [str(count) for count in samples])
        growing.minorticks_off()
        growing.legend(frameon=False)


def draw_subspaces(result: Mapping[str, Any], means: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Error of the masked Gram matrix, and overlap of the leading eigenspaces, over density."""
    with _figure(path, 2) as (_, (errors, overlaps)):
        masks = list(dict.fromkeys(row["mask"] for row in means))
        for number, mask in enumerate(masks):
            rows = sorted((row for row in means if row["mask"] == mask), key=lambda row: row["density"])
            colour = COLOURS[number % len(COLOURS)]
            densities = [row["density"] for row in rows]
            errors.plot(densities, [row["frobenius"] for row in rows], "o-", color=colour, label=mask)
            if mask == "random":
                predicted = [row["predicted_frobenius"] for row in rows]
                errors.plot(densities, predicted, "k:")
                overlaps.plot([], [], "k:", label="predicted error of random")
            overlaps.plot(densities, [row["overlap"] for row in rows], "o-", color=colour, label=mask)
        overlaps.axhline(result["chance_overlap"], color="#57606a", linestyle=":", label="chance")
        errors.set(xscale="log", yscale="log", xlabel="density", ylabel="relative Frobenius error")
        overlaps.set(xscale="log", xlabel="density", ylim=(0, 1.02))
        overlaps.set(ylabel=f"overlap of the {result['rank']} leading directions")
        overlaps.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_kl(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """KL from the base, and from the checkpoint before, over steps, with 95 % intervals."""
    with _figure(path, 2) as (_, panels):
        for axes, key in zip(panels, ("from_base", "from_previous"), strict=True):
            for number, run in enumerate(runs):
                steps = [int(state["state"].removeprefix("step-")) for state in run["states"]]
                middle = [state[key]["completion"] for state in run["states"]]
                ends = [state[key]["completion_interval"] for state in run["states"]]
                below = [m - low for m, (low, _) in zip(middle, ends, strict=True)]
                above = [high - m for m, (_, high) in zip(middle, ends, strict=True)]
                colour, name = COLOURS[number % len(COLOURS)], Path(run["run"]).name
                axes.errorbar(
                    steps, middle, yerr=[below, above], fmt="o-", capsize=3, color=colour, label=name
                )
            axes.set(xlabel="optimiser step", ylim=(0, None))
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set(ylabel="KL(base || checkpoint), nats a completion")
        panels[1].set(ylabel="KL(checkpoint before || checkpoint)")
        panels[1].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))


def draw_updates(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each matrix's entropy rank beside that of its entries shuffled, and its energy in the principal directions."""
    with _figure(path, 2) as (_, (ranks, overlaps)):
        for number, run in enumerate(runs):
            colour, matrices = COLOURS[number % len(COLOURS)], [m for m in run["matrices"].values() if m]
            full = [min(row["rows"], row["columns"]) for row in matrices]
            x = [row["shuffled"]["entropy"] / side for row, side in zip(matrices, full, strict=True)]
            y = [row["effective"]["entropy"] / side for row, side in zip(matrices, full, strict=True)]
            ranks.plot(x, y, "o", color=colour, alpha=0.6, label=Path(run["run"]).name)
            chance = [row["top"] / row["rows"] for row in matrices]
            overlaps.plot(chance, [row["left"] for row in matrices], "o", color=colour, alpha=0.6)
        for axes in (ranks, overlaps):
            axes.axline((0, 0), slope=1, color="#57606a", linestyle=":")
        ranks.set(xlabel="entropy rank of shuffled entries / full rank", ylabel="of the update / full rank")
        overlaps.set(xlabel="chance: r / rows", ylabel="update's energy in the top r left directions")
        ranks.legend(frameon=False, fontsize=8.5)


def draw_prediction(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy after training over the two strongest predictors."""
    with _figure(path, 2) as (_, panels):
        chosen = sorted(result["correlations"], key=lambda row: -abs(row["spearman"]))[:2]
        for axes, row in zip(panels, chosen, strict=True):
            for number, label in enumerate(dict.fromkeys(run["mask"] for run in result["runs"])):
                runs = [run for run in result["runs"] if run["mask"] == label]
                colour = COLOURS[number % len(COLOURS)]
                x, y = [run[row["predictor"]] for run in runs], [run["after"] for run in runs]
                axes.plot(x, y, "o", color=colour, label=label)
            axes.set(xlabel=row["predictor"].replace("_", " "), ylabel="pass@1 after training")
            axes.set_title(f"Spearman {row['spearman']:+.2f}, p = {row['spearman_p']:.3g}", loc="left")
        panels[1].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
