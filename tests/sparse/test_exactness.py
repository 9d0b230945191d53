"""The values' gradients are the dense gradients at the mask's positions, for every family and every reader."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy_models import FAMILIES, build, qwen2, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")

DENSITY = 0.2


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def dense_gradients(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    loss(model).backward()
    return {name: parameter.grad.flatten() for name, parameter in model.named_parameters()}


def assert_gradients_are_the_dense_ones(attachment, dense: dict[str, Tensor], relative: float = 1e-5) -> None:
    """Relative to the tensor's own largest gradient: summation order differs between the paths."""
    for name, values in attachment.named_parameters():
        wanted = dense[name][attachment.mask.indices(name)]
        assert values.grad is not None, name
        assert values.grad.dtype == values.dtype
        torch.testing.assert_close(
            values.grad,
            wanted.to(values.dtype),
            rtol=relative,
            atol=relative * float(dense[name].abs().max()),
        )


@pytest.mark.parametrize("checkpointing", [None, "plain", "reentrant"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_the_models_own_forward(family, checkpointing):
    model = build(family)
    ids = tokens()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    if checkpointing:
        reentrant = checkpointing == "reentrant"
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)
    assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith("__values"))


@pytest.mark.parametrize("method", ["native", "sampled", "blocks"])
def test_each_linear_method_in_a_whole_model(method, monkeypatch):
    monkeypatch.setattr("multiticket.sparse.direct.weight.choose_method", lambda *_: method)
    model = build("llama")
    ids = tokens()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_bitwise_the_same_and_no_name_changes(family):
    model = build(family).eval()
    ids = tokens()
    before = model(input_ids=ids).logits
    names = [name for name, _ in model.named_parameters()]
    classes = {name: type(module) for name, module in model.named_modules()}
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert [name for name, _ in model.named_parameters() if not name.endswith("__values")] == names
    assert all(isinstance(module, classes[name]) for name, module in model.named_modules())
    assert [name for name, _ in attachment.named_parameters()] == list(attachment.mask.names)
    attachment.detach()
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_density_one_is_full_training(family):
    model = build(family)
    ids = tokens()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = mt.attach(model, mt.Mask.random(model, 1.0))
    loss_of(model, ids).backward()
    assert sum(values.numel() for values in attachment.parameters()) == sum(g.numel() for g in dense.values())
    assert_gradients_are_the_dense_ones(attachment, dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_gradients(family):
    model = build(family)
    batches = [tokens(seed=seed) for seed in (1, 2, 3)]
    dense = dense_gradients(model, lambda model: sum(loss_of(model, ids) for ids in batches))
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    for ids in batches:
        loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_through_code_that_reads_a_weight_itself(tied):
    torch.manual_seed(0)
    model = qwen2(tied).train()
    ids = tokens()

    def loss(model: nn.Module) -> Tensor:
        hidden = model.model(input_ids=ids).last_hidden_state
        weight = model.get_output_embeddings().weight
        up = model.model.layers[0].mlp.up_proj
        return (hidden @ weight.T).logsumexp(-1).sum() + (up.weight**2).sum()

    dense = dense_gradients(model, loss)
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    loss(model).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


class PaddedAndShared(nn.Module):
    """What the transformers models do not show: a padding row, a shared layer, a bias that leads, odd shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 5, padding_idx=3)
        self.shared = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.conv = nn.Conv1d(5, 7, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(7))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.shared(self.shared(self.table(ids)).tanh()))
        return (self.conv(hidden.transpose(1, 2)).transpose(1, 2) * self.scale).square().mean()


def test_padding_rows_shared_layers_and_other_modules():
    torch.manual_seed(0)
    model = PaddedAndShared().double()
    ids = torch.randint(0, 17, (4, 6))
    ids[0, :3] = 3
    dense = dense_gradients(model, lambda model: model(ids))
    attachment = mt.attach(model, mt.Mask.random(model, 0.7))
    model(ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense, relative=1e-12)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_autocast_equals_dense_training_under_autocast(family):
    model = build(family)
    ids = tokens()

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(model, ids)

    dense = dense_gradients(model, loss)
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    loss(model).backward()
    assert_gradients_are_the_dense_ones(attachment, dense, relative=1e-2)


def test_non_contiguous_weight_trains():
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(torch.randn(6, 4).T)
    assert not layer.weight.is_contiguous()
    dense = dense_gradients(layer, lambda layer: layer(torch.ones(2, 6)).square().sum())
    attachment = mt.attach(layer, mt.Mask.random(layer, 0.5))
    layer(torch.ones(2, 6)).square().sum().backward()
    for name, values in attachment.named_parameters():
        wanted = dense[name].reshape(-1)[attachment.mask.indices(name)]
        torch.testing.assert_close(values.grad, wanted)
    before = layer.weight.detach().clone()
    torch.optim.SGD(attachment.parameters(), lr=0.1).step()
    moved = (layer.weight.detach() != before).reshape(-1).nonzero().flatten()
    assert torch.equal(moved, attachment.mask.indices("weight"))
