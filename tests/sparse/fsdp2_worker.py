"""What test_fsdp2.py judges: an attached model under fully_shard, beside one process on the joint batch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from two_ranks import Figures, Toy, batches, differs, loss_of, own_half, serve, toy, train

import multiticket as mt

SGD = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-2, eps=1e-5, fused=True)


def shard(model: Toy, **options) -> Toy:
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Dense weights, read from what each rank keeps. Collective."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = {n: p.detach() for n, p in model.named_parameters() if not n.endswith("__values")}
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for n, p in found.items()}


def attached(dtype: torch.dtype = torch.float32, **options) -> tuple[Toy, mt.Attachment]:
    model = toy(dtype)
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    return shard(model, **options), attachment


def all_positions(attachment: mt.Attachment) -> str:
    mask = attachment.mask
    return hashlib.sha256(b"".join(mask.indices(name).numpy().tobytes() for name in mask.names)).hexdigest()


def ends_as_one_process(
    make=SGD, dtype=torch.float32, forward=lambda model, ids: model(ids), **options
) -> Figures:
    one = toy(dtype)
    base = whole_weights(one)
    alone = mt.attach(one, mt.Mask.random(one, 0.3))
    train(one, make(alone.parameters()), clip=1.0)
    two, attachment = attached(dtype, **options)
    train(two, make(attachment.parameters()), forward, own_half, clip=1.0)
    trained, wanted = whole_weights(two), whole_weights(one)
    held = {n: attachment.dense_values(n) for n in attachment.mask.names}
    inside = {n: trained[n].flatten()[attachment.mask.indices(n)] for n in held}
    outside = 0
    for name in trained:
        moved = (trained[name] != base[name]).flatten().nonzero().flatten()
        allowed = attachment.mask.indices(name) if name in held else torch.tensor([], dtype=torch.long)
        outside += int((~torch.isin(moved, allowed)).sum())
    return {
        "difference": differs(trained, wanted),
        "moved": differs(trained, base),
        "moved outside the mask": outside,
        "values against weights": differs(held, inside),
        "fp32 values against one process": differs(
            attachment.state_dict()["values"], alone.state_dict()["values"]
        ),
        "positions": [all_positions(attachment), all_positions(alone)],
        "own values": sum(p.to_local().numel() for p in attachment.parameters()),
        "nnz": attachment.nnz,
        "own weights": sum(p.to_local().numel() for n, p in two.named_parameters() if not p.requires_grad),
        "value dtypes": sorted({str(p.dtype) for p in attachment.parameters()}),
    }


def recomputed(model: Toy, ids: Tensor) -> Tensor:
    return model(ids, recompute=True)


def control(make=SGD, dtype=torch.float32) -> Figures:
    """Plain training of all weights, without an attachment."""
    one, two = toy(dtype), shard(toy(dtype))
    train(one, make(one.parameters()), clip=1.0)
    train(two, make(two.parameters()), share=own_half, clip=1.0)
    return {"difference": differs(whole_weights(one), whole_weights(two))}


def half_precision() -> Figures:
    """fp32 values beside bf16 weights, against one process that adds up the halves of each batch."""

    def halves(make) -> tuple[Toy, mt.Attachment]:
        model = toy(torch.bfloat16)
        attachment = mt.attach(model, mt.Mask.random(model, 0.3))
        optimizer = make(attachment.parameters())
        for ids in batches(4):
            optimizer.zero_grad()
            for half in ids.chunk(2):
                (loss_of(model(half), half) / 2).backward()
            optimizer.step()
        return model, attachment

    _, alone = halves(SGD)
    two, attachment = attached(torch.bfloat16)
    train(two, SGD(attachment.parameters()), share=own_half)
    dense = whole_weights(two)
    rounded = {n: values.bfloat16() for n, values in attachment.state_dict()["values"].items()}
    inside = {n: dense[n].flatten()[attachment.mask.indices(n)] for n in rounded}
    return {
        "difference": differs(attachment.state_dict()["values"], alone.state_dict()["values"]),
        "moved": differs(dense, whole_weights(toy(torch.bfloat16))),
        "values against weights": differs(rounded, inside),
        "dtypes": sorted({f"{p.dtype} {p.requires_grad}" for p in two.parameters()}),
    }


def written_while_the_root_is_whole() -> Figures:
    """A forward pass without gradient leaves the root unsharded; a step right after it must reach the shards."""
    model, attachment = attached()
    optimizer = SGD(attachment.parameters())
    ids = own_half(next(batches(1)))
    loss_of(model(ids), ids).backward()
    with torch.no_grad():
        model(ids)
    unsharded = not hasattr(model.norm._parameters["weight"], "placements")
    optimizer.step()
    dense = whole_weights(model)
    values = attachment.state_dict()["values"]
    inside = {n: dense[n].flatten()[attachment.mask.indices(n)] for n in values}
    return {
        "root was whole": unsharded,
        "difference": differs(inside, values),
        "moved": differs(dense, whole_weights(toy())),
        "logits": float((model(ids) - loaded(dense)(ids)).detach().abs().max()),
    }


def loaded(weights: dict[str, Tensor]) -> Toy:
    plain = toy()
    plain.load_state_dict(weights, strict=False)
    return plain


def disabled() -> Figures:
    model, attachment = attached()
    train(model, SGD(attachment.parameters()), share=own_half)
    ids = own_half(next(batches(1)))
    trained = whole_weights(model)
    for values in attachment.parameters():
        values.grad = None
    logits = model(ids)
    with attachment.disabled():
        inside, nested = model(ids), None
        with attachment.disabled():
            nested = model(ids)
        weights = whole_weights(model)
    loss_of(logits, ids).backward()  # the graph made before is still whole
    gradients = {n: v.grad.full_tensor() for n, v in attachment.named_parameters()}
    twin = loaded(trained)
    wanted = mt.attach(twin, mt.Mask.random(twin, 0.3))
    joint = next(batches(1))
    loss_of(twin(joint), joint).backward()
    return {
        "inside": differs(weights, whole_weights(toy())),
        "logits": float((inside - toy()(ids)).detach().abs().max()),
        "nested": bool(torch.equal(inside, nested)),
        "after": differs(whole_weights(model), trained),
        "logits after": float((model(ids) - logits).detach().abs().max()),
        "gradients": differs(gradients, {n: v.grad for n, v in wanted.named_parameters()}),
        "base was another": differs(trained, whole_weights(toy())),
    }


def resumes() -> Figures:
    """Through the attachment's own state, and through torch's sharded state dicts; three steps more end alike."""
    model, attachment = attached()
    train(model, SGD(attachment.parameters()), share=own_half)
    state, torch_state = attachment.state_dict(), get_model_state_dict(model)
    torch_state = {n: t.clone() for n, t in torch_state.items()}
    train(model, SGD(attachment.parameters()), share=own_half)
    wanted = whole_weights(model)

    again, own = attached()
    own.load_state_dict(state)
    train(again, SGD(own.parameters()), share=own_half)
    twice, other = attached()
    set_model_state_dict(twice, torch_state)
    saved = {n: torch_state[n].full_tensor() for n, p in model.named_parameters() if not p.requires_grad}
    same = differs(whole_weights(twice), saved)
    train(twice, SGD(other.parameters()), share=own_half)
    one = toy()
    alone = mt.attach(one, mt.Mask.random(one, 0.3))
    alone.load_state_dict(state)
    return {
        "own state": differs(whole_weights(again), wanted),
        "torch state": differs(whole_weights(twice), wanted),
        "loaded": same,
        "in one process": differs(dict(alone.state_dict()["values"]), state["values"]),
        "fingerprints": [attachment.base_fingerprint, alone.base_fingerprint],
    }


def one_rank_saves_the_ticket() -> Figures:
    model, attachment = attached()
    train(model, SGD(attachment.parameters()), share=own_half)
    expected = whole_weights(model)
    if dist.get_rank() == 0:
        values = {n: attachment.dense_values(n) for n in attachment.mask.names}
        plain = toy()
        with torch.no_grad():
            for n, p in plain.named_parameters():
                if n in values:
                    p.put_(attachment.mask.indices(n), values[n])
        return {"difference": differs(whole_weights(plain), expected)}
    return {"difference": 0.0}


def ticket_file() -> Figures:
    """As one rank saves it; some tensors have a single value, whose gathered form must be plain memory too."""
    model = toy()
    attachment = mt.attach(model, mt.Mask.random(model, 0.15))
    counts = [values.numel() for values in attachment.parameters()]
    train(shard(model), SGD(attachment.parameters()), share=own_half)
    expected = whole_weights(model)
    if dist.get_rank() == 1:
        return {"difference": 0.0, "least": min(counts), "moved": differs(expected, whole_weights(toy()))}
    path = Path(sys.argv[1]) / "ticket.safetensors"
    attachment.ticket().save(path)
    plain = toy()
    mt.Ticket.load(path).apply(plain)
    return {
        "difference": differs(whole_weights(plain), expected),
        "least": min(counts),
        "moved": differs(expected, whole_weights(toy())),
    }


def message_of(call: Callable[[], object], kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return "nothing was raised"


def refusals() -> Figures:
    model, attachment = attached()
    ids = own_half(next(batches(1)))
    base, loose = get_model_state_dict(shard(toy())), StateDictOptions(strict=False)
    dense_alone = message_of(lambda: set_model_state_dict(model, base, options=loose), ValueError)
    detach = message_of(attachment.detach, ValueError)
    with torch.no_grad():
        for values in attachment.parameters():
            values.to_local().add_(0.1)
    by_hand = message_of(lambda: model(ids), RuntimeError)
    ticket = message_of(lambda: attachment.dense_values("norm.weight"), RuntimeError)
    attachment.flush()
    after_flush = message_of(lambda: model(ids), RuntimeError)

    late = toy()
    late_attachment = mt.attach(late, mt.Mask.random(late, 0.3))
    early_optimizer = SGD(late_attachment.parameters())
    shard(late)
    loss_of(late(ids), ids).backward()
    by_columns = nn.Linear(4, 4)
    columns = mt.attach(by_columns, mt.Mask.random(by_columns, 0.5))
    fully_shard(by_columns, shard_placement_fn=lambda parameter: Shard(1) if parameter.ndim == 2 else None)
    return {
        "dense alone": dense_alone,
        "detach": detach,
        "by hand": by_hand,
        "ticket": ticket,
        "after flush": after_flush,
        "early optimizer": message_of(early_optimizer.step, RuntimeError),
        "sharded already": message_of(
            lambda: mt.attach(shard(toy()), mt.Mask.random(toy(), 0.3)), ValueError
        ),
        "columns": message_of(columns.flush, ValueError),
    }


def accelerates_own_preparation(efficient: bool) -> Figures:
    """``fsdp2_prepare_model`` is what ``Accelerator.prepare`` runs on an accelerator; on a CPU it prepares DDP."""
    from types import SimpleNamespace

    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from toy_models import build

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen2DecoderLayer"],
        cpu_ram_efficient_loading=efficient,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        device=torch.device("cpu"),
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
    )

    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    one, two = build("qwen2"), build("qwen2")
    mask = mt.Mask.random(one, 0.2)
    alone, attachment = mt.attach(one, mask), mt.attach(two, mask)
    base = whole_weights(one)
    two = fsdp2_prepare_model(accelerator, two)
    train(one, SGD(alone.parameters()), forward)
    train(two, SGD(attachment.parameters()), forward, own_half)
    wanted = whole_weights(one)
    return {
        "difference": differs(whole_weights(two), wanted),
        "moved": differs(wanted, base),
        "sharded": all(hasattr(values, "placements") for values in attachment.parameters()),
        "values": sum(values.numel() for values in attachment.parameters()),
        "nnz": attachment.nnz,
    }


if __name__ == "__main__":
    serve(
        {
            "sgd": ends_as_one_process,
            "fp64": partial(ends_as_one_process, dtype=torch.float64),
            "adamw": partial(ends_as_one_process, make=ADAMW),
            "kept whole": partial(ends_as_one_process, reshard_after_forward=False),
            "recomputed": partial(ends_as_one_process, forward=recomputed),
            "control sgd": control,
            "control fp64": partial(control, dtype=torch.float64),
            "control adamw": partial(control, make=ADAMW),
            "bf16": half_precision,
            "policy": partial(
                ends_as_one_process, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
            ),
            "root whole": written_while_the_root_is_whole,
            "disabled": disabled,
            "resume": resumes,
            "one rank": one_rank_saves_the_ticket,
            "ticket file": ticket_file,
            "accelerate": partial(accelerates_own_preparation, efficient=False),
            "accelerate efficient": partial(accelerates_own_preparation, efficient=True),
            "refusals": refusals,
        }
    )
