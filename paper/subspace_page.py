"""What was measured of the gradients' subspace, as a section of a study's report.

The claim has three parts, each decided by one number in every state that was looked at: few directions (of
C = E[g g^T], beyond the samples: the interval's upper end is at most `FEW` of the parameters), spread over coordinates
(the leading direction's participation is at least `SPREAD` of a Gaussian vector's), and kept by random masks of the
density that is claimed (the Gram matrix under the mask is aligned with the full one by at least `ALIGNED`, for every
mask seed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multiticket.research.study.page_section import Entry, Figure, Mark, PageSection, Series, Table, Verdict
from multiticket.research.theory import plots
from multiticket.research.theory.delocalisation import ALL
from multiticket.research.theory.fisher import mean_over_seeds

FEW = 1e-3
SPREAD = 0.1
ALIGNED = 0.9
RANDOM = "random"


@dataclass(frozen=True)
class StateGradients:
    """One state of the model and what the instruments say of its gradients."""

    state: str
    accuracy: float | None
    """pass@1, where it is known."""
    spectrum: Mapping[str, Any]
    """Of `fisher.spectrum`."""
    kept: Mapping[str, Any]
    """Of `fisher.subspaces`."""

    def masks(self, control: str, density: float) -> list[Mapping[str, Any]]:
        """One row a mask seed."""
        return [row for row in self.kept["masks"] if (row["mask"], row["density"]) == (control, density)]

    def few(self) -> bool:
        population = self.spectrum["population_rank"]
        return bool(population is not None and population["high"] <= FEW * self.spectrum["parameters"])

    def spread(self) -> bool:
        leading = self.spectrum["leading"][0][ALL]
        return bool(leading["participation"] >= SPREAD * leading["gaussian_participation"])

    def aligned(self, density: float) -> bool:
        rows = self.masks(RANDOM, density)
        return bool(rows) and all(row["alignment"] >= ALIGNED for row in rows)


def verdict_of(states: Sequence[StateGradients], density: float) -> Verdict:
    """Reproduced where all three parts hold in every state, not reproduced where one fails in every state."""
    parts = [[s.few() for s in states], [s.spread() for s in states], [s.aligned(density) for s in states]]
    if all(all(part) for part in parts):
        return "reproduced"
    return "not reproduced" if any(not any(part) for part in parts) else "not decided"


def subspace_section(
    states: Sequence[StateGradients], density: float, parameters: str, command: str, about: Mapping[str, Any]
) -> PageSection:
    """The section.

    Args:
        density: of the random masks that the claim is about.
        parameters: what the states were trained with, in words.
    """
    first = states[0].spectrum
    spectra = [(state.state, state.spectrum) for state in states]
    return PageSection(
        name="subspace",
        heading="The policy gradient lies in few directions, spread over coordinates, and a random mask keeps them.",
        verdict=verdict_of(states, density),
        answer=" ".join([_few(states), _spread(states), _kept(states, density)]),
        n=f"{len(states)} states; {', '.join(str(s.spectrum['samples']) for s in states)} completions with an "
        f"advantage, of {first['rollouts']} each for {first['problems']} {first['split']} problems",
        command=command,
        notes=[
            parameters,
            f"Few: the estimate beyond the samples, with its whole interval, is at most {FEW:g} of the parameters. "
            f"Spread: the leading direction's participation is at least {SPREAD:g} of a Gaussian vector's. Kept: "
            f"alignment of at least {ALIGNED:g} for every random mask of {100 * density:g} %. Not reproduced: one of "
            "them fails in every state.",
            "Gradients of single completions, advantage times grad log p, sampled from each state's own policy. An "
            "effective rank of samples is bounded by their number, so it stands beside noise of the same norms.",
            "This is the geometry of plain gradient steps; AdamW divides each coordinate by its own scale.",
            "docs/theory.md says what each figure is.",
        ],
        figures=[plots.spectra(spectra), plots.growth(spectra), *_alignments(states)],
        tables=[_ranks(states), _leading(states), *(_masks(state) for state in states)],
        numbers={**about, "states": [_numbers(state) for state in states]},
    )


def _few(states: Sequence[StateGradients]) -> str:
    said = []
    for state in states:
        rank, noise = state.spectrum["effective_rank"], state.spectrum["noise_rank"]
        population = state.spectrum["population_rank"]
        beyond = f", {_range(population)} beyond the samples" if population else ""
        said.append(f"{state.state} {rank['participation']:.0f} (noise {noise['participation']:.0f}){beyond}")
    word = _word([state.few() for state in states])
    return (
        f"Few directions: {word}; participation {'; '.join(said)}, of {states[0].spectrum['parameters']:,}."
    )


def _spread(states: Sequence[StateGradients]) -> str:
    firsts = [(state.state, state.spectrum["leading"][0][ALL]) for state in states]
    said = "; ".join(
        f"{name} {v['participation']:.2g} (coherence {v['coherence']:,.0f}, Gaussian {v['gaussian_coherence']:.0f})"
        for name, v in firsts
    )
    word = _word([state.spread() for state in states])
    return f"Spread over coordinates: {word}; participation of the leading direction, 0.33 for a Gaussian one: {said}."


def _kept(states: Sequence[StateGradients], density: float) -> str:
    said = []
    for state in states:
        found = [row["alignment"] for row in state.masks(RANDOM, density)]
        said.append(f"{state.state} {sum(found) / len(found):.3f}" if found else f"{state.state} unknown")
    word = _word([state.aligned(density) for state in states])
    return f"Kept by random masks of {100 * density:g} %: {word}; alignment {'; '.join(said)}."


def _word(holds: Sequence[bool]) -> str:
    return "yes" if all(holds) else "no" if not any(holds) else f"in {sum(holds)} of {len(holds)} states"


def _range(population: Mapping[str, float]) -> str:
    return f"{population['value']:.0f} ({population['low']:.0f} to {population['high']:.0f})"


def _ranks(states: Sequence[StateGradients]) -> Table:
    kinds = {"participation": "participation", "entropy": "entropy", "95 % of energy": "energy95"}
    rows: list[list[Entry]] = []
    for state in states:
        of = state.spectrum
        ranks = [
            round(of[of_what][kind], 1)
            for kind in kinds.values()
            for of_what in ("effective_rank", "noise_rank")
        ]
        beyond = _range(of["population_rank"]) if of["population_rank"] else None
        accuracy = None if state.accuracy is None else round(100 * state.accuracy, 1)
        rows.append([state.state, accuracy, of["samples"], *ranks, beyond])
    names = [name for kind in kinds for name in (kind, "noise")]
    return Table(
        caption="Effective ranks of the gradients, each beside noise of the same norms, and the participation beyond "
        "the samples with its 95 % interval",
        columns=["state", "pass@1, %", "samples", *names, "beyond the samples"],
        rows=rows,
    )


def _leading(states: Sequence[StateGradients]) -> Table:
    everything = {"parameters": 1.0, "energy": 1.0}
    return Table.of(
        "How the leading direction lies in the coordinates, by kind of tensor",
        [
            (f"{state.state}, {kind}", of, state.spectrum["energy"].get(kind, everything))
            for state in states
            for kind, of in state.spectrum["leading"][0].items()
        ],
        {
            "state, kind": lambda row: row[0],
            "parameters, %": lambda row: round(100 * row[2]["parameters"], 1),
            "energy, %": lambda row: round(100 * row[2]["energy"], 1),
            "coherence": lambda row: round(row[1]["coherence"]),
            "coherence, Gaussian": lambda row: round(row[1]["gaussian_coherence"]),
            "participation": lambda row: float(f"{row[1]['participation']:.2g}"),
            "participation, Gaussian": lambda row: 0.33,
        },
        folded=True,
    )


def _masks(state: StateGradients) -> Table:
    def digits(name: str, scale: float = 1) -> Callable[[Mapping[str, Any]], Entry]:
        return lambda row: float(f"{scale * row[name]:.3g}")

    return Table.of(
        f"What masks keep of the gradients, {state.state}; overlap of leading eigenspaces of rank "
        f"{state.kept['rank']}, by chance {state.kept['chance_overlap']:.3f}",
        mean_over_seeds(state.kept["masks"]),
        {
            "mask": lambda row: row["mask"],
            "density, %": lambda row: 100 * row["density"],
            "seeds": lambda row: row["seeds"],
            "energy, %": digits("energy", 100),
            "Frobenius error": digits("frobenius"),
            "predicted": digits("predicted_frobenius"),
            "alignment": digits("alignment"),
            "overlap": digits("overlap"),
        },
        folded=state.state != "base",
    )


def _alignments(states: Sequence[StateGradients]) -> list[Figure]:
    series = []
    for state in states:
        found: dict[float, list[float]] = {}
        for row in state.kept["masks"]:
            if row["mask"] == RANDOM:
                found.setdefault(row["density"], []).append(row["alignment"])
        densities = sorted(found)
        if densities:
            means = [sum(found[density]) / len(found[density]) for density in densities]
            ends = [(min(found[density]), max(found[density])) for density in densities]
            series.append(Series.with_ends(state.state, densities, means, ends))
    if not series:
        return []
    said = "; ".join(
        f"{one.name} {', '.join(f'{y:.2f} at {x:g}' for x, y in zip(one.x, one.y, strict=True))}"
        for one in series
    )
    return [
        Figure(
            kind="chart",
            caption="Alignment of the gradients' Gram matrix under random masks with the full one; bars from the "
            "lowest to the highest mask seed.",
            alternative=f"Alignment by density: {said}.",
            x_label="density",
            y_label="alignment",
            x_log=True,
            series=series,
            marks=[Mark(at=ALIGNED, label=f"kept, {ALIGNED:g}")],
        )
    ]


def _numbers(state: StateGradients) -> dict[str, Any]:
    """Without the path of the model."""
    spectrum = {key: value for key, value in state.spectrum.items() if key != "model"}
    kept = {"rank": state.kept["rank"], "masks": list(state.kept["masks"])}
    return {"state": state.state, "pass@1": state.accuracy, "spectrum": spectrum, "subspace": kept}
