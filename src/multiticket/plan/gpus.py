"""What each of several GPUs holds, and what it sends to the others, by the two ways to share a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from multiticket.arms.facts import ARMS
from multiticket.plan.memory import RESERVE, ArmPlan, Plan, Units

ASSUMPTIONS = (
    "Several GPUs: batch and completions are those of each. DDP keeps a second copy of the gradients, in which it "
    "exchanges them. FSDP2 shares weights, values, gradients and moments, not positions; in a pass two layers and the "
    "embedding and head are there whole, in generation all weights.",
    "A GPU sends (n - 1) / n of a tensor to gather or to scatter it, and twice that to sum it everywhere.",
)


@dataclass(frozen=True)
class GpuPlan:
    """The memory of each GPU, in bytes."""

    strategy: str
    state: int
    training: int
    generation: int
    sent: int
    """In an optimiser step of one pass, with its generation."""

    @property
    def peak(self) -> int:
        return max(self.training, self.generation)

    def fits(self, gpu_memory: int) -> bool:
        """Whether a GPU of ``gpu_memory`` bytes holds the peak and ``RESERVE``."""
        return self.peak + RESERVE <= gpu_memory

    def to_json(self, gpu_memory: int | None) -> dict[str, Any]:
        fits = None if gpu_memory is None else self.fits(gpu_memory)
        return {**asdict(self), "peak": self.peak, "fits": fits}


def on_gpus(plan: Plan, arm: ArmPlan, gpus: int) -> tuple[GpuPlan, ...]:
    """Each strategy, of an arm on `gpus` (ValueError below 1). A quantised base is not shared by FSDP2."""
    if gpus < 1:
        raise ValueError(f"gpus must be at least 1, but is {gpus}.")
    if plan.workload.quantised is not None:
        return (_ddp(arm, gpus),)
    return _ddp(arm, gpus), _fsdp2(arm, gpus, plan.units)


def _ddp(arm: ArmPlan, gpus: int) -> GpuPlan:
    copy = arm.gradients if gpus > 1 else 0
    return GpuPlan(
        strategy="ddp",
        state=arm.state + copy,
        training=arm.training + copy,
        generation=arm.generation + copy,
        sent=2 * _others_share(arm.gradients, gpus),
    )


def _fsdp2(arm: ArmPlan, gpus: int, units: Units) -> GpuPlan:
    shared = (arm.weights, arm.values, arm.gradients, arm.moments)
    state = arm.state - sum(shared) + sum(-(-part // gpus) for part in shared)
    beside = 0 if ARMS[arm.arm].trains_everything else arm.values
    ready = 2 * units.largest + units.rest
    gathered = ready + int(beside * ready / max(1, units.layers + units.rest))
    gradient = int(arm.gradients * units.largest / max(1, units.layers + units.rest))
    passed = 2 * (units.layers + beside) + units.rest
    generated = arm.weights + beside
    return GpuPlan(
        strategy="fsdp2",
        state=state,
        training=state + gathered + gradient + arm.activations + max(arm.logits_fused, arm.recomputed),
        generation=state - -(-arm.gradients // gpus) + generated + arm.cache + arm.drawn,
        sent=_others_share(passed + generated + arm.gradients + beside, gpus),
    )


def _others_share(size: int, gpus: int) -> int:
    return size * (gpus - 1) // gpus
