"""What is kept from one step to the next, by a user's loop or a module, and steps taken within the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_models import build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def dense_twin(model: nn.Module, mask: mt.Mask) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy that trains all of its weights, and which entries count: (n,) bool by name."""
    chosen = {}
    for name in mask.names:
        flags = torch.zeros(mask.shape(name), dtype=torch.bool).flatten()
        flags[mask.indices(name)] = True
        chosen[name] = flags.view(mask.shape(name))
    return copy.deepcopy(model), chosen


def sgd(dense: nn.Module, chosen: dict[str, Tensor], rate: float = 0.1) -> None:
    """A dense step at the mask's positions alone."""
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if parameter.grad is not None and name in chosen:
                parameter -= rate * parameter.grad * chosen[name]
            parameter.grad = None


def assert_weights_alike(model: nn.Module, dense: nn.Module) -> None:
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(
            dict(model.named_parameters())[name].detach(), parameter.detach(), msg=name
        )


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mamba", "qwen3_moe"])
def test_a_loss_may_be_kept_with_its_graph_over_steps(family):
    model = build(family)
    mask = mt.Mask.random(model, 0.2)
    dense, chosen = dense_twin(model, mask)
    optimizer = torch.optim.SGD(mt.attach(model, mask).parameters(), lr=0.1)
    kept = []
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model, tokens(seed=seed)).backward()
        loss_of(dense, tokens(seed=seed)).backward()
        optimizer.step()
        sgd(dense, chosen)
        kept.append((loss_of(model, tokens(seed=9)), loss_of(dense, tokens(seed=9))))
    for mine, theirs in kept:
        torch.testing.assert_close(mine, theirs)
    assert_weights_alike(model, dense)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as for the dense model
        kept[0][0].backward()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 8)
        self.cells = kind(8, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 31)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.table(ids))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_train_as_dense_ones_for_several_steps(kind):
    torch.manual_seed(0)
    model, ids = Recurrent(kind), torch.arange(12).view(3, 4)
    mask = mt.Mask.random(model, 0.5)
    dense, chosen = dense_twin(model, mask)
    attachment = mt.attach(model, mask)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        for each in (model, dense):
            each(ids).square().mean().backward()
        optimizer.step()
        sgd(dense, chosen)
        assert_weights_alike(model, dense)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), dense(ids))
    with attachment.disabled():
        model(ids)
    attachment.detach()
    assert type(model.cells) is kind
    assert model.cells._flat_weights[0] is model.cells.weight_ih_l0
    model(ids).square().mean().backward()
    assert model.cells.weight_ih_l0.grad is not None


@pytest.mark.parametrize("each", ["parameters", "named_parameters"])
def test_one_optimiser_a_parameter_that_steps_within_the_backward_pass(each):
    model = build("qwen2")
    mask = mt.Mask.random(model, 0.2)
    dense, chosen = dense_twin(model, mask)
    attachment = mt.attach(model, mask)
    trained = [
        *(attachment.parameters() if each == "parameters" else dict(attachment.named_parameters()).values())
    ]
    optimizers = {id(values): torch.optim.SGD([values], lr=0.1) for values in trained}

    def step(values: Tensor) -> None:
        optimizers[id(values)].step()
        optimizers[id(values)].zero_grad()

    for values in trained:
        values.register_post_accumulate_grad_hook(step)
    for seed in range(3):
        loss_of(model, tokens(seed=seed)).backward()
        loss_of(dense, tokens(seed=seed)).backward()
        sgd(dense, chosen)
        assert_weights_alike(model, dense)


def test_steps_within_the_backward_pass_where_no_tokens_are_embedded():
    model = build("llama")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    before = attachment.state_dict()["values"]
    for values in attachment.parameters():
        values.register_post_accumulate_grad_hook(lambda p: torch.optim.SGD([p], lr=0.1).step())
    embedded = torch.randn(2, 5, 16, requires_grad=True)
    model(inputs_embeds=embedded).logits.square().mean().backward()
    after = attachment.state_dict()["values"]
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == [name for name in before if "embed_tokens" not in name]


def test_what_was_cleared_stays_cleared_when_somebody_looks_at_the_values():
    """A loop that logs its values between ``zero_grad`` and the next backward pass."""
    model = build("llama")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    values = dict(attachment.named_parameters())
    optimizers = [torch.optim.SGD([one], lr=0.0) for one in values.values()]
    gradients = []
    for _ in range(2):
        loss_of(model, tokens()).backward()
        gradients.append({name: one.grad.clone() for name, one in attachment.named_parameters()})
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert all(one.grad is None for _, one in attachment.named_parameters())
    for name, first in gradients[0].items():
        assert torch.equal(gradients[1][name], first), name
