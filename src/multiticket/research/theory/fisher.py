"""What ``multiticket theory fisher`` and ``subspace`` measure: the gradients of a model's own completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from multiticket import tasks
from multiticket.evaluate.trained import DEFAULT_TASK
from multiticket.mask import Mask
from multiticket.research.theory.control_masks import control_mask, settings
from multiticket.research.theory.delocalisation import (
    GAUSSIAN_PARTICIPATION,
    gaussian_coherence,
    leading_vectors,
    spread_of_leading,
)
from multiticket.research.theory.gradients import Gradients, of_model
from multiticket.research.theory.gram import Grams, grams
from multiticket.research.theory.kinds import kind_of
from multiticket.research.theory.rollouts import Rollout, policy_scalars, sample_rollouts, scores
from multiticket.research.theory.spectrum import (
    effective_rank,
    eigenvalues,
    growth,
    noise_rank,
    population_rank,
)
from multiticket.research.theory.states import find_state
from multiticket.research.theory.subspace import kept, predicted_error_of

KINDS_OF_GRADIENT = ("policy", "score")


@dataclass(frozen=True)
class Sampling:
    """Whose gradients, of what."""

    model: str
    """The place of a state (`states.find_state`): a base, or what was trained of one."""
    task: str | None
    """None: the state's own, ``arithmetic`` for a model."""
    gradient: str
    """``policy``: A_i grad log p_i; ``score``: grad log p_i."""
    split: str
    problems: int
    group: int
    seed: int
    memory: int
    """Bytes of a block of gradients."""


@dataclass(frozen=True)
class Measured:
    """A model with the gradients of its rollouts."""

    sampling: Sampling
    model: Any
    tokenizer: Any
    rollouts: list[Rollout]
    """Those that have a gradient: with an advantage, where the policy's is asked for."""
    gradients: Gradients
    sampled: int
    """Rollouts before those without an advantage were left out."""

    def about(self) -> dict[str, Any]:
        """What was measured, for a table's head and JSON."""
        return {
            **asdict(self.sampling),
            "rollouts": self.sampled,
            "samples": len(self.rollouts),
            "parameters": self.gradients.numel,
            "reward": sum(rollout.reward for rollout in self.rollouts) / len(self.rollouts),
        }


def measured(sampling: Sampling) -> Measured:
    """Load the model, sample its rollouts, and prepare their gradients (fp32, in evaluation mode).

    Raises:
        ValueError: for a user's mistake, or if no rollout has an advantage.
    """
    if sampling.gradient not in KINDS_OF_GRADIENT:
        raise ValueError(f"There is no gradient {sampling.gradient!r}: give policy or score.")
    state = find_state(sampling.model)
    sampling = replace(sampling, task=sampling.task or state.task)
    assert sampling.task is not None
    task = tasks.get(sampling.task)
    model, tokenizer = state.load()
    return measured_on(sampling, model, tokenizer, task)


def measured_on(sampling: Sampling, model: Any, tokenizer: Any, task: Any) -> Measured:
    """`measured` of a model that is loaded."""
    model.eval()
    all_rollouts = sample_rollouts(
        model, tokenizer, task, sampling.problems, sampling.group, sampling.split, seed=sampling.seed
    )
    rollouts = all_rollouts
    if sampling.gradient == "policy":
        rollouts = [rollout for rollout in all_rollouts if rollout.advantage]
    if not rollouts:
        raise ValueError(
            "No completion has an advantage (every problem's completions got one reward), so there is no policy "
            "gradient: use more problems or completions, or --gradient score."
        )
    scalars = (policy_scalars if sampling.gradient == "policy" else scores)(model, rollouts)
    gradients = of_model(model, scalars, sampling.memory)
    return Measured(sampling, model, tokenizer, rollouts, gradients, len(all_rollouts))


def spectrum(found: Measured, rank: int) -> dict[str, Any]:
    """Spectrum, its bound and growth, and the spread of the `rank` leading eigenvectors, as plain JSON."""
    result = grams(found.gradients)
    full = result.full
    values = eigenvalues(full)
    norms, numel = full.diagonal().clamp(min=0).sqrt(), found.gradients.numel
    problems = [rollout.problem for rollout in found.rollouts]
    leading_vectors(full, rank)  # refuses a rank that is not there before the second pass
    return {
        **found.about(),
        "eigenvalues": values.tolist(),
        "effective_rank": asdict(effective_rank(values)),
        "noise_rank": asdict(noise_rank(norms, numel, found.sampling.seed)),
        "population_rank": asdict(population_rank(full, problems)) if len(set(problems)) > 2 else None,
        "growth": [asdict(point) for point in growth(full, numel, found.sampling.seed)],
        "energy": energy_by_kind(result, found.gradients),
        "leading": [
            {
                kind: {
                    "numel": spread.numel,
                    "energy": spread.energy,
                    "coherence": spread.coherence,
                    "gaussian_coherence": gaussian_coherence(spread.numel),
                    "participation": spread.participation,
                    "gaussian_participation": GAUSSIAN_PARTICIPATION,
                }
                for kind, spread in spreads.items()
            }
            for spreads in spread_of_leading(found.gradients, full, rank)
        ],
    }


def energy_by_kind(result: Grams, gradients: Gradients) -> dict[str, dict[str, float]]:
    """Each kind's share of the parameters and of the gradients' squared norm."""
    total = float(result.full.trace())
    shares: dict[str, dict[str, float]] = {}
    for name, gram in result.by_tensor.items():
        share = shares.setdefault(kind_of(name), {"parameters": 0.0, "energy": 0.0})
        numel = 1
        for side in gradients.shapes[name]:
            numel *= side
        share["parameters"] += numel / gradients.numel
        share["energy"] += float(gram.trace()) / total
    return shares


def subspaces(
    found: Measured, controls: Sequence[str], densities: Sequence[float], seeds: int, rank: int
) -> dict[str, Any]:
    """What each control mask keeps at each density, over mask seeds 0 ... `seeds` - 1, as plain JSON."""
    wanted = {
        (control, density, seed): settings(
            control, density, seed, found.sampling.model, found.sampling.task or DEFAULT_TASK
        )
        for control in controls
        for density in densities
        for seed in range(seeds)
    }
    made = {key: control_mask(found.model, found.tokenizer, config) for key, config in wanted.items()}
    masks = {key: mask for key, mask in made.items() if isinstance(mask, Mask)}
    result = grams(found.gradients, list(masks.values()))
    rows = []
    for (key, mask), gram in zip(masks.items(), result.masked, strict=True):
        control, density, seed = key
        row = {"mask": control, "density": density, "seed": seed, "nnz": mask.nnz}
        rows.append({**row, **comparison(result, gram, mask, density, rank)})
    refused = [
        {"mask": key[0], "density": key[1], "seed": key[2], "reason": mask}
        for key, mask in made.items()
        if not isinstance(mask, Mask)
    ]
    return {**found.about(), "rank": rank, "chance_overlap": rank / len(found.rollouts), "masks": rows} | (
        {"refused": refused} if refused else {}
    )


def comparison(result: Grams, masked: Any, mask: Mask, density: float, rank: int) -> dict[str, Any]:
    """`subspace.kept` and the predicted error of one mask, as plain JSON."""
    of = kept(result.full, masked, density, rank)
    return {
        **asdict(of),
        "overlap": of.overlap,
        "predicted_frobenius": predicted_error_of(result, mask, density),
    }


def mean_over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a mask and density, with each number's mean over seeds and, of the Frobenius error, the extremes."""
    cells: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["mask"], row["density"]), []).append(row)
    numbers = (
        "energy",
        "mean_energy",
        "frobenius",
        "predicted_frobenius",
        "operator",
        "alignment",
        "overlap",
    )
    return [
        {
            "mask": mask,
            "density": density,
            "seeds": len(cell),
            **{name: sum(row[name] for row in cell) / len(cell) for name in numbers},
            "frobenius_low": min(row["frobenius"] for row in cell),
            "frobenius_high": max(row["frobenius"] for row in cell),
            "smallest_cosine": sum(row["cosines"][-1] for row in cell) / len(cell),
        }
        for (mask, density), cell in cells.items()
    ]
