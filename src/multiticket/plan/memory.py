"""What training a model will cost in memory, by component, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multiticket import arms as all_arms
from multiticket import bases
from multiticket.arms.facts import ARMS as FACTS
from multiticket.config import RunConfig, build
from multiticket.errors import first_sentence, why_not_loaded
from multiticket.generate.shared_prompts import keeps_all_tokens
from multiticket.mask import Mask
from multiticket.plan.activations import (
    FULL_ROWS,
    PADDED_ROWS,
    cache_bytes,
    inputs,
    saved_by_forward,
    share_of_tokens,
)
from multiticket.plan.head import fused_head_bytes, naive_head_bytes
from multiticket.plan.quantised import quantised_bytes
from multiticket.plan.units import Units, units_of
from multiticket.sparse.gradient.factored import factors_under_hooks
from multiticket.sparse.planned import planned_for

ARMS = tuple(FACTS)
STATE = ("weights", "buffers", "values", "gradients", "moments", "positions", "bookkeeping")
"""Components of a model's state, in the order they are shown."""
DTYPES = ("bfloat16", "float16", "float32")
DEVICES = ("cuda", "cpu")
RESERVE = 2**30
"""Left free when asking whether a GPU is large enough: the CUDA context, kernels' workspaces, the allocator's gaps."""
LIBRARIES = 5 * 2**27
"""What a process on a CPU takes before it has a model: torch, transformers, datasets and TRL."""
HOLES = 0.65
"""Of the activations in glibc's heap: as much lies free between them. Blocks of torch are aligned, and until glibc 2.38
a freed block does not fit the next aligned one of its size."""

ASSUMPTIONS = (
    "One device; each component at its own largest, each stored once.",
    "full: fp32 master weights beside a bf16 or fp16 model, fp32 gradients and moments (the paper's 18 bytes a "
    "parameter). ticket: fp32 values, gradients and moments. lora: PEFT on every linear layer but the head, fp32.",
    "AdamW with a fused step, which needs no temporary copies.",
    "Activations: what autograd saves in one forward pass, with flash attention.",
    "Fused logits: TRL's log-probability head, a tile of logits at a time; naive: the whole logits, their fp32 "
    "log-softmax and its gradients. The training peak counts the fused head.",
    "Quantised: linear layers but the head, and among the activations the largest layer's dense copy; full training "
    "has no quantised weights.",
    "The peak is the larger of training (all but the cache) and generation (no gradients or activations).",
    "On a CPU: the process, with its libraries and what glibc's heap cannot use again (two thirds of what autograd "
    "keeps in blocks below 32 MiB, with glibc before 2.38).",
    f"Asking what fits keeps {RESERVE // 2**30} GiB free for what is not counted: the CUDA context, kernels' "
    "workspaces, gaps.",
)


@dataclass(frozen=True)
class ArmPlan:
    """The memory of one way of training, in bytes."""

    arm: str
    trained: int
    """Number of values that the optimiser steps."""
    lora_rank: int | None
    weights: int
    """The model's own weights, in the dtype they are used in."""
    buffers: int
    values: int
    """What the optimiser steps where that is not the weights: a ticket's values, LoRA's matrices, master weights."""
    gradients: int
    moments: int
    positions: int
    bookkeeping: int
    """What the engine keeps beside values and positions, and the optimiser's step counters."""
    activations: int
    recomputed: int
    """With gradient checkpointing, the activations of the one layer that the backward pass computes again."""
    logits_fused: int
    logits_naive: int
    cache: int
    """Keys and values of all completions that are generated at once."""
    drawn: int = 0
    """The logits that a token of each is drawn from."""
    libraries: int = 0
    """On a CPU, where they count: what is in memory before a model is."""
    holes: int = 0
    """On a CPU, memory that its allocator cannot use again while activations lie between."""

    @property
    def state(self) -> int:
        """What is there at every step, whatever the batch."""
        return sum(getattr(self, name) for name in STATE)

    @property
    def training(self) -> int:
        """The most that a forward and backward pass holds; the head's logits are gone when layers are recomputed."""
        held = self.state + self.activations + max(self.logits_fused, self.recomputed)
        return held + self.libraries + self.holes

    @property
    def generation(self) -> int:
        return self.state - self.gradients + self.cache + self.drawn + self.libraries

    @property
    def peak(self) -> int:
        return max(self.training, self.generation)

    def fits(self, gpu_memory: int) -> bool:
        """Whether a GPU of ``gpu_memory`` bytes holds the peak and ``RESERVE``."""
        return self.peak + RESERVE <= gpu_memory


@dataclass(frozen=True)
class Plan:
    """The memory of training one model in several ways."""

    model: str
    parameters: int
    dtype: str
    density: float
    nnz: int
    batch: int
    tokens: int
    completions: int
    padded: bool
    gradient_checkpointing: bool
    quantised: str | None
    units: Units
    arms: tuple[ArmPlan, ...]

    def to_json(self, gpu_memory: int | None = None) -> dict[str, Any]:
        """The plan with its sums; ``fits`` is null where no GPU was given."""
        arms = [
            {
                **asdict(arm),
                "state": arm.state,
                "state_bytes_per_parameter": arm.state / self.parameters,
                "training": arm.training,
                "generation": arm.generation,
                "peak": arm.peak,
                "fits": None if gpu_memory is None else arm.fits(gpu_memory),
            }
            for arm in self.arms
        ]
        return {**asdict(self), "gpu_memory": gpu_memory, "arms": arms, "assumptions": list(ASSUMPTIONS)}


def plan(
    model: str,
    density: float = 0.01,
    tokens: int = 1024,
    batch: int = 4,
    dtype: str = "bfloat16",
    arms: Sequence[str] = ARMS,
    lora_rank: int | None = None,
    gradient_checkpointing: bool = False,
    padded: bool = False,
    completions: int | None = None,
    make_mask: Callable[[Any], Mask] | None = None,
    device: str = "cuda",
    masters: bool = True,
    quantised: str | None = None,
    prompts: tuple[int, int] | None = None,
) -> Plan:
    """What training ``model`` will cost in memory. Reads its configuration and no weights.

    Args:
        model: a shipped base, a folder with a ``config.json``, or a name on the hub.
        density: the ticket's.
        tokens: prompt and completion together.
        batch: sequences in one forward and backward pass.
        dtype: of the weights, ``bfloat16``, ``float16`` or ``float32``.
        arms: of ``full``, ``ticket``, ``lora``.
        lora_rank: None: the rank whose number of trained values is nearest the ticket's.
        padded: whether rows are padded; transformers then gives attention a mask, and more is saved.
        completions: sequences generated at once; None: ``batch``.
        make_mask: gives the ticket's mask of the model on the meta device; None: random positions of every tensor.
        device: ``cuda``, or ``cpu``, which says by which path a ticket is attached, and so what its layers keep.
        quantised: ``nf4`` or ``int8``: count the linear layers but the head as bitsandbytes stores them, in every arm
            but full, which cannot train them.
        masters: count the full arm's fp32 master weights beside a bf16 or fp16 model, as the paper has them.
        prompts: how many different ones are in a batch, and of how many tokens: a pass on a CPU computes each once,
            where that pays. None: every sequence has its own.

    Raises:
        ValueError: no such model or dtype or arm, a number out of bounds, or a model whose forward pass needs values.
    """
    _check(density, tokens, batch, dtype, arms, lora_rank, completions, device)
    config = _configuration(model)
    base = _build(config, dtype, padded)
    mask = make_mask(base) if make_mask is not None else Mask.random(base, density)
    completions = completions or batch
    try:
        cache = completions * cache_bytes(base, tokens)
        with planned_for(device):
            planned = tuple(
                _plan_arm(
                    _build(config, dtype, padded),
                    mask,
                    build({"arm": arm, "lora_rank": lora_rank}),
                    batch,
                    tokens,
                    gradient_checkpointing,
                    cache,
                    completions,
                    device,
                    masters,
                    quantised,
                    prompts,
                )
                for arm in arms
            )
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"The forward pass of {config.model_type} cannot be planned without weights, so measure it instead: "
            f"{first_sentence(error)}."
        ) from error
    return Plan(
        model=model,
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        dtype=dtype,
        density=density,
        nnz=mask.nnz,
        batch=batch,
        tokens=tokens,
        completions=completions,
        padded=padded,
        gradient_checkpointing=gradient_checkpointing,
        quantised=quantised,
        units=units_of(base),
        arms=planned,
    )


def _plan_arm(
    model: Any,
    mask: Mask,
    settings: RunConfig,
    batch: int,
    tokens: int,
    checkpointing: bool,
    cache: int,
    completions: int,
    device: str,
    masters: bool,
    quantised: str | None,
    prompts: tuple[int, int] | None,
) -> ArmPlan:
    arm = all_arms.get(settings.arm)
    head = model.get_output_embeddings()
    spared = copied = 0
    if quantised is not None and not arm.facts.trains_everything:
        spared, copied = quantised_bytes(model, quantised)
    model, state = arm.plan(model, settings, mask, inputs(batch, tokens, model.device), masters)
    with nullcontext() if checkpointing else factors_under_hooks():  # checkpointing is hooks of its own
        saved = saved_by_forward(model, batch, tokens)
    recomputed = 0
    if checkpointing:
        recomputed = saved.largest_layer
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if arm.graph_starts_late:
            model.enable_input_require_grads()  # as trainers do
        saved = saved_by_forward(model, batch, tokens)
    share = 1.0
    if prompts is not None and device == "cpu" and not checkpointing and keeps_all_tokens(model.config):
        share = share_of_tokens(batch, tokens, *prompts)
    activations = round(share * saved.bytes)
    if prompts is not None and share < 1:  # every sequence has keys and values of its prompt of its own
        activations += batch * (prompts[1] - 1) * (cache // completions // tokens)
    state = replace(state, weights=state.weights - spared)
    vocabulary, width = model.config.get_text_config().vocab_size, head.weight.shape[1]
    itemsize = head.weight.dtype.itemsize
    on_a_cpu = device == "cpu"
    adapters = list(getattr(model, "peft_config", {}).values())
    return ArmPlan(
        arm=arm.name,
        lora_rank=adapters[0].r if adapters else None,
        **asdict(state),
        activations=activations + copied,
        recomputed=recomputed,
        logits_fused=fused_head_bytes(arm, device, batch * tokens, vocabulary, width, itemsize),
        logits_naive=naive_head_bytes(batch * tokens, vocabulary, itemsize),
        cache=cache,
        drawn=completions * vocabulary * (itemsize + 4),
        libraries=LIBRARIES if on_a_cpu else 0,
        holes=round(HOLES * saved.in_heap(share)) if on_a_cpu else 0,
    )


def _check(
    density: float,
    tokens: int,
    batch: int,
    dtype: str,
    arms: Sequence[str],
    lora_rank: int | None,
    completions: int | None,
    device: str,
) -> None:
    if device not in DEVICES:
        raise ValueError(f"There is no device {device!r} to plan for; give {' or '.join(DEVICES)}.")
    if dtype not in DTYPES:
        raise ValueError(f"There is no dtype {dtype!r} to plan for; give {', '.join(DTYPES)}.")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms or len(set(arms)) < len(arms):
        raise ValueError(
            f"The arms to plan are some of {', '.join(ARMS)}, each once, not {','.join(arms)!r}."
        )
    if not 0 < density <= 1:
        raise ValueError(f"The density must be above 0 and at most 1, such as 0.01, but is {density:g}.")
    counts = {"tokens": tokens, "batch": batch, "lora-rank": lora_rank, "completions": completions}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count}.")


def _configuration(model: str) -> Any:
    place = bases.resolve(model)
    if model.startswith((".", "/", "~")) and not (Path(place).expanduser() / "config.json").is_file():
        raise ValueError(
            f"There is no config.json in {model}: give a shipped base, a model's folder, or a hub name."
        )
    try:
        return AutoConfig.from_pretrained(
            str(Path(place).expanduser()) if Path(place).expanduser().is_dir() else place
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Cannot read the configuration of {model!r}: give a shipped base ({', '.join(bases.names())}), a folder "
            f"with a config.json, or a hub name; {why_not_loaded(error)}."
        ) from None


def _build(config: Any, dtype: str, padded: bool) -> Any:
    """The model on the meta device, ready to train."""
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except ValueError as error:
        raise ValueError(
            f"{config.model_type} is not a causal language model that can be planned: {first_sentence(error)}."
        ) from None
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PADDED_ROWS if padded else FULL_ROWS)
    return model.train()
