"""Copies of attached models and of their parts train as what they were copied from, or are refused in words."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_models import FAMILIES, build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def trained(family: str = "qwen2", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, mt.Attachment]:
    """An attached model after a step, with something that rounding hides."""
    model = build(family, dtype)
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    loss_of(model, tokens()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, attachment


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def assert_alike(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_trains_as_the_original_and_on_its_own(family, dtype):
    if (family, dtype) == ("qwen3_moe", torch.bfloat16):
        pytest.skip("torch's grouped product wants wider experts in bf16")
    model, attachment = trained(family, dtype)
    twin = copy.deepcopy(model)
    assert sum(p.numel() for p in twin.parameters() if p.requires_grad) == attachment.nnz
    assert_alike(model, twin)
    optimizers = sgd(model), sgd(twin)
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        loss_of(each, tokens(seed=2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_alike(model, twin)
    kept = copy.deepcopy(model.state_dict())
    loss_of(twin, tokens(seed=3)).backward()
    optimizers[1].step()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(kept[name], tensor) for name, tensor in twin.state_dict().items())


def test_a_copy_and_its_original_can_be_detached_in_either_order():
    base = build("llama").state_dict()
    for first in (0, 1):
        model, attachment = trained("llama")
        twin = copy.deepcopy(model)
        other = attachment_of(twin)
        pair = [attachment, other]
        pair[first].detach(keep=False)
        loss_of(pair[1 - first].model, tokens()).backward()
        pair[1 - first].detach(keep=False)
        for each in (model, twin):
            assert all(torch.equal(tensor, base[name]) for name, tensor in each.state_dict().items())
            assert all(p.requires_grad for p in each.parameters())


def attachment_of(model: nn.Module) -> mt.Attachment:
    from multiticket.sparse.watching import attachments_of

    (found,) = attachments_of(model.parameters())
    return found


def test_model_and_optimiser_copied_together_stay_together():
    model, attachment = trained()
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    loss_of(model, tokens()).backward()
    optimizer.step()
    optimizer.zero_grad()
    twin, own = copy.deepcopy((model, optimizer))
    for each, steps in ((model, optimizer), (twin, own)):
        loss_of(each, tokens(seed=2)).backward()
        steps.step()
    assert_alike(model, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_of_models(dtype):
    model, attachment = trained(dtype=dtype)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer, states = torch.optim.SGD(attachment.parameters(), lr=0.5), []
    for seed in range(3):
        loss_of(model, tokens(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        states.append(attachment.state_dict()["values"])
    average(input_ids=tokens())
    for name in attachment.mask.names:
        wanted = sum(state[name] for state in states) / 3
        held = dict(average.module.named_parameters())[name].detach().take(attachment.mask.indices(name))
        torch.testing.assert_close(held, wanted.to(dtype))


def test_an_exponential_average_by_hand():
    model, attachment = trained()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer, wanted = sgd(model), attachment.state_dict()["values"]
    for seed in range(3):
        loss_of(model, tokens(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(ema.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
        now = attachment.state_dict()["values"]
        wanted = {name: wanted[name].lerp(now[name], 0.1) for name in wanted}
    with torch.no_grad():
        ema(input_ids=tokens())
    for name, parameter in ema.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.take(attachment.mask.indices(name)), wanted[name])


def test_a_copy_of_a_wrapper_around_the_model():
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.scale = model, nn.Parameter(torch.ones(()))

    model, attachment = trained()
    wrapper = copy.deepcopy(Wrapper(model))
    loss_of(wrapper.model, tokens()).backward()
    before = wrapper.model.state_dict()["lm_head.weight"].clone()
    sgd(wrapper).step()
    assert not torch.equal(wrapper.model.state_dict()["lm_head.weight"], before)
    assert sum(p.numel() for p in wrapper.model.parameters() if p.requires_grad) == attachment.nnz


def test_a_compiled_models_copy():
    model, _ = trained("llama")
    compiled = torch.compile(model, backend="eager")
    loss_of(compiled, tokens()).backward()
    twin = copy.deepcopy(compiled)
    for each in (compiled, twin):
        for p in each.parameters():
            p.grad = None
        optimizer = sgd(each)
        loss_of(each, tokens(seed=2)).backward()
        optimizer.step()
    assert_alike(compiled, twin)
    assert type(twin) is type(compiled)
    assert not torch.equal(twin._orig_mod.state_dict()["lm_head.weight"], build("llama").lm_head.weight)


def test_a_copy_of_a_model_with_an_adapter():
    peft = pytest.importorskip("peft")
    model, attachment = trained()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    for values in attachment.parameters():
        values.requires_grad_(True)
    twin = copy.deepcopy(adapted)
    assert type(twin) is type(adapted)
    for each in (adapted, twin):
        optimizer = sgd(each)
        loss_of(each, tokens(seed=2)).backward()
        optimizer.step()
    assert_alike(adapted, twin)


def test_a_copy_of_a_part_is_a_plain_part_that_trains_densely():
    """As adapters' ``modules_to_save`` make them."""
    model, _ = trained()
    layer = copy.deepcopy(model.model.layers[0])
    assert type(layer.mlp.up_proj) is nn.Linear
    held = {
        name: tensor for name, tensor in model.model.layers[0].state_dict().items() if "__values" not in name
    }
    assert layer.state_dict().keys() == held.keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in layer.state_dict().items())
    assert all(p.requires_grad for p in layer.parameters())
    head = copy.deepcopy(model.lm_head)
    head(torch.randn(3, 16)).square().sum().backward()
    assert head.weight.grad is not None
    assert head.weight.data_ptr() != model.lm_head.weight.data_ptr()
    weight = copy.deepcopy(model.model.norm.weight)
    assert type(weight) is nn.Parameter
    assert torch.equal(weight, model.model.norm.weight)


def test_what_was_frozen_stays_frozen_in_copies():
    model = build("llama")
    model.model.layers[0].requires_grad_(False)
    mt.attach(model, mt.Mask.random(model, 0.2))
    for part, trains in ((model.model.layers[0], False), (model.model.layers[1], True)):
        assert {p.requires_grad for p in copy.deepcopy(part).parameters()} == {trains}


@pytest.mark.parametrize("what", ["model", "part"])
def test_pickles_are_refused_in_words_and_leave_the_model_alone(what):
    model, attachment = trained()
    target = model if what == "model" else model.lm_head
    for save in (
        lambda: torch.save(target, io.BytesIO()),
        lambda: pickle.dumps(target),
        lambda: copy.copy(target),
    ):
        with pytest.raises(TypeError, match="attachment cannot be pickled"):
            save()
    loss_of(model, tokens()).backward()
    assert all(p.grad is not None for p in attachment.parameters())


def test_parameters_of_what_is_read_of_a_weight():
    model, _ = trained()
    for layer in (model.lm_head, model.model.norm):
        mine = nn.Parameter(layer.weight.clone())
        shared = nn.Parameter(layer.weight)
        for each in (mine, shared):
            (each * torch.randn(3, 16)[:1]).sum().backward()
            assert each.is_leaf
            assert each.grad.shape == layer.weight.shape
        stored = io.BytesIO()
        torch.save({"weight": layer.weight.detach(), "shared": shared}, stored)
        stored.seek(0)
        assert torch.equal(torch.load(stored, weights_only=True)["weight"], layer.weight)
