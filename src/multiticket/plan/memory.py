"""What training a model will cost in memory, by component, from its configuration alone."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

from multiticket import arms
from multiticket.arms.state import State, storage_bytes
from multiticket.config import build
from multiticket.errors import first_sentence
from multiticket.generate.own_attention import listed
from multiticket.generate.room import most_tokens
from multiticket.generate.shared_prompts import keeps_all_tokens
from multiticket.mask import Mask
from multiticket.plan.activations import FULL_ROWS, PADDED_ROWS, Saved, cache_bytes, inputs, saved_by_forward
from multiticket.plan.head import fused_head_bytes, naive_head_bytes
from multiticket.plan.quantised import quantised_bytes
from multiticket.plan.workload import Workload
from multiticket.sparse.gradient.factored import factors_under_hooks
from multiticket.sparse.planned import planned_for
from multiticket.train.shared_groups import share_of_tokens, turns_positions

RESERVE = 2**30
"""Left free when asking whether a GPU is large enough: the CUDA context, kernels' workspaces, the allocator's gaps."""
LIBRARIES = 5 * 2**27
"""What a process on a CPU takes before it has a model: torch, transformers, datasets and TRL."""
HOLES = 0.65
"""Of the activations in glibc's heap: as much lies free between them. Blocks of torch are aligned, and until glibc 2.38
a freed block does not fit the next aligned one of its size."""
SHOWN = (
    *("model", "dtype", "density", "batch", "tokens", "padded"),
    *("gradient_checkpointing", "quantised"),
)
"""What a plan says of its workload."""

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
class ArmPlan(State):
    """The memory of one way of training, in bytes."""

    arm: str
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

    def to_json(self) -> dict[str, Any]:
        """The components and their sums."""
        sums = {name: getattr(self, name) for name in ("state", "training", "generation", "peak")}
        return {"arm": self.arm, **asdict(self), **sums}


@dataclass(frozen=True)
class Units:
    """Bytes of the weights that FSDP2 gathers at a time."""

    layers: int
    """All layers together."""
    largest: int
    """The largest layer."""
    rest: int
    """Embedding, last norm and head, which stay whole through a pass."""


@dataclass(frozen=True)
class Plan:
    """The memory of training one model in several ways."""

    workload: Workload
    parameters: int
    nnz: int
    units: Units
    arms: tuple[ArmPlan, ...]

    def to_json(self, gpu_memory: int | None = None) -> dict[str, Any]:
        """The plan with its sums; ``fits`` is null where no GPU was given."""
        return {
            **{name: getattr(self.workload, name) for name in SHOWN},
            "completions": self.workload.at_once,
            "parameters": self.parameters,
            "nnz": self.nnz,
            "units": asdict(self.units),
            "gpu_memory": gpu_memory,
            "arms": [
                {
                    **arm.to_json(),
                    "state_bytes_per_parameter": arm.state / self.parameters,
                    "fits": None if gpu_memory is None else arm.fits(gpu_memory),
                }
                for arm in self.arms
            ],
            "assumptions": list(ASSUMPTIONS),
        }


def plan(workload: Workload) -> Plan:
    """What training will cost in memory. Reads the model's configuration and no weights.

    Raises:
        ValueError: there is no such model, or its forward pass needs values.
    """
    base = workload.build()
    mask = workload.make_mask(base) if workload.make_mask else Mask.random(base, workload.density)
    try:
        with planned_for(workload.device):
            cache = cache_bytes(base, workload.tokens)
            planned = [_plan_arm(arm, deepcopy(base), mask, cache, workload) for arm in workload.arms]
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"The forward pass of {base.config.model_type} cannot be planned without weights, so measure it instead: "
            f"{first_sentence(error)}."
        ) from error
    return Plan(
        workload=workload,
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        nnz=mask.nnz,
        units=_units_of(base),
        arms=tuple(planned),
    )


def _units_of(model: Any) -> Units:
    """By the layers that transformers names; a model without any is one."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    sizes = [storage_bytes(layer.parameters()) for layer in layers or [model]]
    return Units(sum(sizes), max(sizes), max(0, storage_bytes(model.parameters()) - sum(sizes)))


def _generated(workload: Workload, model: Any) -> tuple[int, int]:
    """Completions that are generated at once, and tokens whose keys and values are held for them."""
    rows = workload.at_once
    if workload.generated is None:
        return rows, rows * workload.tokens
    different, prompt, completion, most = workload.generated
    most = most_tokens(model.config, model.dtype, most)
    if workload.device == "cpu" and keeps_all_tokens(model.config) and listed(model):
        held = different * prompt + rows * completion
        if held <= most:
            return rows, held
        return max(1, rows * most // held), most
    rows = min(rows, max(1, most // (prompt + completion)))
    return rows, rows * (prompt + completion)


def _with_prompts_once(
    model: Any, saved: Saved, cache: int, workload: Workload, prompts: tuple[int, int, int]
) -> tuple[Saved, float, int]:
    """What a pass over whole sequences saves, the share of it that is left where prompts are computed once, and bytes
    of keys and values besides.

    Args:
        saved: by sequences with padding, if the workload has it.
    """
    batch, tokens, (different, prompt, common) = workload.batch, workload.tokens, prompts
    common = common if turns_positions(model.config) else 0
    share = share_of_tokens(different, prompt, batch, tokens, common)
    if share == 1:
        return saved, share, 0
    if not listed(model):  # every sequence has keys and values of its prompt of its own
        return saved, share, batch * (prompt - 1) * (cache // tokens)
    if model.config._attn_implementation != PADDED_ROWS:
        return saved, share, 0
    # sequences look at their prompt's where they lie, and only prompts' own pass is transformers' with padding
    model.set_attn_implementation(FULL_ROWS)
    with factors_under_hooks():
        plain = saved_by_forward(model, batch, tokens)
    return plain, share, (saved.bytes - plain.bytes) * different * (prompt - 1) // (batch * tokens)


def _plan_arm(name: str, model: Any, mask: Mask, cache: int, workload: Workload) -> ArmPlan:
    """Of a model on the meta device; ``cache``: bytes of that of one sequence."""
    arm, batch, tokens = arms.get(name), workload.batch, workload.tokens
    on_a_cpu, checkpointing = workload.device == "cpu", workload.gradient_checkpointing
    head, spared, copied = model.get_output_embeddings(), 0, 0
    if workload.quantised is not None and not arm.facts.trains_everything:
        spared, copied = quantised_bytes(model, workload.quantised)
    settings = build({"arm": name, "lora_rank": workload.lora_rank})
    model, state = arm.plan(model, settings, mask, inputs(model, batch, tokens), workload.masters)
    with nullcontext() if checkpointing else factors_under_hooks():  # checkpointing is hooks of its own
        saved = saved_by_forward(model, batch, tokens)
    recomputed, share, prompt_keys = 0, 1.0, 0
    if checkpointing:
        recomputed = saved.largest_layer
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if arm.graph_starts_late:
            model.enable_input_require_grads()  # as trainers do
        saved = saved_by_forward(model, batch, tokens)
    elif workload.prompts is not None and on_a_cpu and keeps_all_tokens(model.config):
        saved, share, prompt_keys = _with_prompts_once(model, saved, cache, workload, workload.prompts)
    vocabulary, width = model.config.get_text_config().vocab_size, head.weight.shape[1]
    itemsize = head.weight.dtype.itemsize
    rows, cached = _generated(workload, model)
    return ArmPlan(
        **{**asdict(state), "weights": state.weights - spared},
        arm=name,
        activations=round(share * saved.bytes) + prompt_keys + copied,
        recomputed=recomputed,
        logits_fused=fused_head_bytes(arm, workload.device, batch * tokens, vocabulary, width, itemsize),
        logits_naive=naive_head_bytes(batch * tokens, vocabulary, itemsize),
        cache=cached * cache // tokens,
        drawn=rows * vocabulary * (itemsize + 4),
        libraries=LIBRARIES if on_a_cpu else 0,
        holes=round(HOLES * saved.in_heap(share)) if on_a_cpu else 0,
    )
