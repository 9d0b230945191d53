"""torch.compile(fullgraph=True): one graph, the dense gradients, and no recompilation while the values change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toy_models import build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


class Small(nn.Module):
    """One of each kind of read: an embedding, a norm, two linear layers, and a head that reads the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(31, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.table(tokens)
        hidden = hidden + self.down(self.up(self.norm(hidden)).relu())
        return hidden @ self.table.weight.T


def test_a_compiled_model_trains_as_the_dense_one():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Small().double()
    twin = copy.deepcopy(model)
    mask = mt.Mask.random(model, 0.3)
    attachment = mt.attach(model, mask)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    tokens = torch.arange(12).view(3, 4) % 7
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        twin.zero_grad()
        twin(tokens).square().mean().backward()
        optimizer.zero_grad()
        compiled(tokens).square().mean().backward()
        dense = {name: p.grad.flatten() for name, p in twin.named_parameters()}
        for name, values in attachment.named_parameters():
            torch.testing.assert_close(values.grad, dense[name][mask.indices(name)], rtol=1e-12, atol=1e-14)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                inside = mask.indices(name)
                parameter.view(-1)[inside] -= 0.1 * parameter.grad.view(-1)[inside]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_model_compiled_before_attach_trains_too():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Small().double()
    twin = copy.deepcopy(model)
    tokens = torch.arange(12).view(3, 4) % 7
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(tokens)
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    compiled(tokens).square().mean().backward()
    twin(tokens).square().mean().backward()
    dense = {name: p.grad.flatten() for name, p in twin.named_parameters()}
    for name, values in attachment.named_parameters():
        wanted = dense[name][attachment.mask.indices(name)]
        torch.testing.assert_close(values.grad, wanted, rtol=1e-12, atol=1e-14)


def test_after_a_step_by_hand_flush_reaches_a_compiled_model():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Small().double()
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    tokens = torch.arange(12).view(3, 4) % 7
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    before = compiled(tokens).detach()
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(0.1)
    attachment.flush()
    after = compiled(tokens).detach()
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, model(tokens).detach())


@pytest.mark.parametrize("method", ["random", "columns", "rows"])
def test_each_layer_compiled_by_itself_gives_the_dense_gradients(method, path):
    torch._dynamo.reset()
    model = build("llama", torch.float64)
    ids = tokens()
    twin = copy.deepcopy(model)
    twin(input_ids=ids, use_cache=False).logits.square().mean().backward()
    mask = mt.Mask.from_rule(model, mt.MaskRule(method, 0.05))
    attachment = mt.attach(model, mask)
    for layer in model.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
        optimizer.step()
    for name, values in attachment.named_parameters():
        wanted = twin.get_parameter(name).grad.take(mask.indices(name))
        torch.testing.assert_close(values.grad, wanted, rtol=1e-9, atol=1e-13)


def test_a_compiled_step_leaves_the_compiler_nothing_it_cannot_see_through(path):
    """On the path of accelerators no operator of ours is in the graph: k numbers leave it, by plain aten."""
    torch._dynamo.reset()
    operators, returned = set(), set()

    def note(graph, _):
        operators.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def note_backward(graph, inputs):
        (output,) = [node for node in graph.graph.nodes if node.op == "output"]
        returned.update(tuple(node.meta["val"].shape) for node in output.all_input_nodes)
        return note(graph, inputs)

    torch.manual_seed(0)
    model = Small().double()
    mt.attach(model, mt.Mask.random(model, 0.3))
    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=note, bw_compiler=note_backward)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(torch.arange(12).view(3, 4)).square().mean().backward()
    ours = {name for name in operators if "multiticket" in name}
    assert not ours if path == "hooks" else ours
    assert not returned & {(16, 8), (8, 16)}, "a layer's dense gradient leaves the graph"
