"""The path of accelerators: what hooks, aliases and one flat parameter could get wrong, each tried on a CPU."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_exactness import DENSITY, assert_gradients_are_the_dense_ones, dense_gradients, loss_of
from torch import Tensor, nn
from toy_models import FAMILIES, build, qwen2, tokens

import multiticket as mt
from multiticket.sparse.hooked.attachment import HookedAttachment


def hooked(model: nn.Module, density: float = DENSITY, **rule) -> HookedAttachment:
    mask = mt.Mask.from_rule(model, mt.MaskRule(rule.pop("method", "random"), density, **rule))
    attachment = mt.attach(model, mask, gradient="hooks")
    assert isinstance(attachment, HookedAttachment)
    return attachment


def gradients(attachment: mt.Attachment) -> dict[str, Tensor]:
    return {name: values.grad.clone() for name, values in attachment.named_parameters()}


def no_dense_gradient_is_kept(model: nn.Module) -> bool:
    return all(p.grad is None for n, p in model.named_parameters() if not n.endswith("__values"))


class Plain(nn.Module):
    """No embedding, so that nothing but the engine ends a backward pass; ``used`` chooses its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, used: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        for index in used:
            x = self.norm(self.layers[index](x)).tanh()
        return x


# The gradient


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3", "gpt2", "mamba"])
def test_16_bit_gradients_are_the_dense_ones_within_one_rounding(family, dtype):
    model = build(family, dtype)
    ids = tokens()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = hooked(model)
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense, torch.finfo(dtype).eps)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_micro_batches_accumulate_in_fp32(checkpointing):
    """Each pass gives the dense bf16 gradient, and their sum is not rounded to bf16."""
    model = build("qwen2", torch.bfloat16)
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    batches = [tokens(seed=seed) for seed in range(5)]
    each = [dense_gradients(model, lambda model, ids=ids: loss_of(model, ids)) for ids in batches]
    attachment = hooked(model)
    for ids in batches:
        loss_of(model, ids).backward()
    for name, values in attachment.named_parameters():
        at = attachment.mask.indices(name)
        wanted = sum(dense[name][at].float() for dense in each)
        scale = max(float(dense[name].abs().max()) for dense in each)
        torch.testing.assert_close(values.grad, wanted, rtol=0, atol=scale * torch.finfo(torch.bfloat16).eps)
        if "embed" not in name:
            torch.testing.assert_close(values.grad, wanted, rtol=1e-6, atol=1e-7)


def test_two_forward_passes_and_one_backward_pass():
    model = build("qwen2")
    first, second = tokens(seed=1), tokens(seed=2)

    def loss(model: nn.Module) -> Tensor:
        return loss_of(model, first) + 3 * loss_of(model, second)

    dense = dense_gradients(model, loss)
    attachment = hooked(model)
    loss(model).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_two_backward_passes_over_one_graph():
    model = build("qwen2")
    dense = dense_gradients(model, lambda model: 2 * loss_of(model, tokens()))
    attachment = hooked(model)
    loss = loss_of(model, tokens())
    loss.backward(retain_graph=True)
    loss.backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_a_partly_used_model_has_no_gradient_left_from_before(checkpointing):
    model = Plain()
    attachment = hooked(model)
    x = torch.randn(4, 8)

    def run(used: tuple[int, ...]) -> None:
        for values in attachment.parameters():
            values.grad = None
        if checkpointing is None:
            model(x, used).sum().backward()
        else:
            inputs = x.clone().requires_grad_()
            torch.utils.checkpoint.checkpoint(
                model, inputs, used, use_reentrant=checkpointing
            ).sum().backward()

    for used in ((0, 1, 2), (1,), (0, 2), (1, 1), (2,)):
        dense = copy.deepcopy(model)
        twin = Plain()
        twin.load_state_dict({n: t for n, t in dense.state_dict().items() if not n.endswith("__values")})
        twin(x, used).sum().backward()
        run(used)
        for name, values in attachment.named_parameters():
            gradient = twin.get_parameter(name).grad
            wanted = (
                torch.zeros_like(values) if gradient is None else gradient.take(attachment.mask.indices(name))
            )
            torch.testing.assert_close(values.grad, wanted)


def test_autograd_grad_is_refused_in_words_and_the_next_pass_is_right():
    model = build("qwen2")
    dense = dense_gradients(model, lambda model: loss_of(model, tokens()))
    attachment = hooked(model)
    values = list(attachment.parameters())
    for ask in (
        lambda: torch.autograd.grad(loss_of(model, tokens()), values),
        lambda: loss_of(model, tokens()).backward(inputs=values),
    ):
        with pytest.raises(RuntimeError, match='gradient="blocks"'):
            ask()
    loss_of(model, tokens()).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_a_gradient_with_respect_to_an_input_disturbs_nothing():
    model = build("qwen2")
    dense = dense_gradients(model, lambda model: loss_of(model, tokens()))
    attachment = hooked(model)
    embedded = model.model.embed_tokens(tokens()).detach().requires_grad_()
    (of_input,) = torch.autograd.grad(model(inputs_embeds=embedded).logits.square().mean(), [embedded])
    assert of_input.abs().max() > 0
    loss_of(model, tokens()).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_embedded_inputs_leave_the_engine_to_end_the_pass():
    model = build("llama")
    embedded = torch.randn(2, 5, 16)

    def loss(model: nn.Module) -> Tensor:
        return model(inputs_embeds=embedded).logits.square().mean()

    twin = copy.deepcopy(model)
    loss(twin).backward()
    attachment = hooked(model)
    loss(model).backward()
    for name, values in attachment.named_parameters():
        gradient = twin.get_parameter(name).grad
        at = attachment.mask.indices(name)
        torch.testing.assert_close(
            values.grad, torch.zeros(len(at)) if gradient is None else gradient.take(at)
        )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.MultiheadAttention, nn.Conv1d])
def test_modules_that_read_their_weights_in_other_ways(kind):
    torch.manual_seed(0)
    if kind is nn.MultiheadAttention:
        model, run = kind(8, 2), lambda m, x: m(x, x, x)[0]
    elif kind is nn.Conv1d:
        model, run = kind(8, 8, 3), lambda m, x: m(x.transpose(1, 2))
    else:
        model, run = kind(8, 8, num_layers=2), lambda m, x: m(x)[0]
    x = torch.randn(3, 5, 8)
    twin = copy.deepcopy(model)
    attachment = hooked(model)
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in (twin.parameters(), attachment.parameters())]
    for _ in range(2):
        for m, optimizer in zip((twin, model), optimizers, strict=True):
            optimizer.zero_grad()
            run(m, x).square().mean().backward()
        for name, values in attachment.named_parameters():
            at = attachment.mask.indices(name)
            torch.testing.assert_close(values.grad, twin.get_parameter(name).grad.take(at))
        optimizers[1].step()
        with torch.no_grad():
            for name in attachment.mask.names:
                twin.get_parameter(name).copy_(model.get_parameter(name))


@pytest.mark.parametrize("method", ["columns", "rows", "blocks"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_structured_masks_train_as_the_dense_model(method, density):
    model = build("llama")
    ids = tokens()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = hooked(model, density, method=method)
    if method != "blocks" and density == 0.02:
        assert any("thin" in way for way in attachment.gradient_methods().values())
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_of_the_input_only_a_columns_masks_columns_are_kept():
    layer = nn.Linear(200, 300, bias=False)
    attachment = hooked(layer, 0.02, method="columns")
    assert attachment.gradient_methods() == {"weight": "thin"}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = layer(torch.randn(50, 200)).sum()
    assert sorted(t.numel() for t in kept if t.data_ptr() != layer.weight.data_ptr()) == [50 * 4]
    loss.backward()


def test_a_large_head_is_made_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("multiticket.sparse.gradient.blocks.BLOCK_ENTRIES", 16 * 10)
    model = qwen2(tied=False)
    dense = dense_gradients(model, lambda model: loss_of(model, tokens()))
    attachment = hooked(model)
    assert attachment.gradient_methods()["lm_head.weight"] == "blocks"
    loss_of(model, tokens()).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_no_dense_gradient_outlives_its_hook():
    model = build("llama")
    attachment = hooked(model)
    seen = []
    for tensor in attachment._tensors.values():
        leaves = [module.__dict__.get("_ticket_leaf") for module, _ in tensor.places]
        for leaf in [tensor.alias, *leaves]:
            if leaf is not None and not tensor.is_vector:
                leaf.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad))
    loss_of(model, tokens()).backward()
    assert len(seen) == sum(not tensor.is_vector for tensor in attachment._tensors.values()) - 1  # the lookup
    assert all(gradient is None for gradient in seen)
    assert no_dense_gradient_is_kept(model)


def test_a_weight_that_is_read_past_its_layer_too_has_both_gradients():
    model = build("llama")

    def loss(model: nn.Module) -> Tensor:
        layer, x = model.model.layers[0].mlp.up_proj, torch.ones(3, model.config.hidden_size)
        return loss_of(model, tokens()) + layer(x).sum() + (x @ layer.weight.t()).square().sum()

    dense = dense_gradients(model, loss)
    attachment = hooked(model)
    loss(model).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_what_layers_read_goes_where_the_weights_go():
    model = build("llama")
    hooked(model)
    layer = model.model.layers[0].mlp.up_proj
    for move in (
        lambda: model.to(torch.bfloat16),
        lambda: setattr(layer.weight, "data", layer.weight.data.clone()),
        lambda: layer.to(torch.float64).to(torch.bfloat16),
    ):
        move()
        model(tokens())
        leaf = layer.__dict__["_ticket_leaf"]
        assert leaf.data_ptr() == layer._parameters["weight"].data_ptr() == layer.weight.data_ptr()
        assert leaf.dtype == torch.bfloat16
    attachment = model.__dict__["_ticket_record"].attachment
    attachment.detach()
    assert "_ticket_leaf" not in layer.__dict__
    assert type(layer) is nn.Linear


# Values: one parameter, many views


def test_all_values_are_two_parameters_and_those_of_a_tensor_a_view():
    model = build("qwen2")
    attachment = hooked(model)
    matrices, vectors = attachment.parameters()
    assert matrices.numel() + vectors.numel() == attachment.nnz
    sizes = {name: values.numel() for name, values in attachment.named_parameters()}
    assert sizes == {name: attachment.mask.indices(name).numel() for name in attachment.mask.names}
    loss_of(model, tokens()).backward()
    views = dict(attachment.named_parameters())
    with torch.no_grad():
        views["model.norm.weight"].add_(1.0)
        matrices.sub_(1.0)
    assert torch.equal(
        attachment.state_dict()["values"]["model.norm.weight"], views["model.norm.weight"].detach()
    )
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(attachment.state_dict()["values"][up], views[up].detach())


def test_trainers_exempt_norms_and_biases_from_weight_decay_as_always(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = build("qwen2")
    attachment = hooked(model)
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", weight_decay=0.1)
    optimizer = Trainer(model, arguments).create_optimizer()
    matrices, vectors = attachment.parameters()
    decayed = [[id(p) for p in group["params"]] for group in optimizer.param_groups if group["weight_decay"]]
    spared = [
        [id(p) for p in group["params"]] for group in optimizer.param_groups if not group["weight_decay"]
    ]
    assert (decayed, spared) == ([[id(matrices)]], [[id(vectors)]])


def test_an_optimiser_over_some_tensors_views_trains_those_alone():
    model = build("qwen2")
    attachment = hooked(model)
    views = dict(attachment.named_parameters())
    chosen = [name for name in views if "mlp" in name]
    optimizer = torch.optim.AdamW([views[name] for name in chosen], lr=1e-2)
    before = attachment.state_dict()["values"]
    for seed in range(3):
        dense = dense_gradients(plain_twin(model), lambda model, seed=seed: loss_of(model, tokens(seed=seed)))
        loss_of(model, tokens(seed=seed)).backward()
        for name in chosen:  # cleared by its own zero_grad, though the others are not
            torch.testing.assert_close(views[name].grad, dense[name][attachment.mask.indices(name)])
        optimizer.step()
        optimizer.zero_grad()
    after = attachment.state_dict()["values"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(chosen)
    for name in chosen:
        assert torch.equal(attachment.dense_values(name), after[name])


def plain_twin(model: nn.Module) -> nn.Module:
    """A model without attachment, with the same weights."""
    twin = build("qwen2")
    twin.load_state_dict({n: t for n, t in model.state_dict().items() if not n.endswith("__values")})
    return twin


@pytest.mark.parametrize("other", ["direct", "hooks"])
def test_a_run_goes_on_with_the_other_path(other):
    """``state_dict`` of either path loads into either, and so does torch's own of the direct path."""
    model, again = build("llama"), build("llama")
    ways = {"direct": "blocks", "hooks": "hooks"}
    first = mt.attach(model, mt.Mask.random(model, DENSITY), gradient=ways[other])
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    loss_of(model, tokens()).backward()
    optimizer.step()
    second = mt.attach(
        again, mt.Mask.random(again, DENSITY), gradient=ways["direct" if other == "hooks" else "hooks"]
    )
    second.load_state_dict(first.state_dict())
    for name in first.mask.names:
        assert torch.equal(first.dense_values(name), second.dense_values(name))
    if other == "direct":
        fresh = build("llama")
        third = hooked(fresh)
        fresh.load_state_dict(model.state_dict())
        for name in first.mask.names:
            assert torch.equal(first.dense_values(name), third.dense_values(name))


# What others do to a model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_moved_and_cast_models_train_on(dtype):
    model = build("qwen2")
    attachment = hooked(model)
    loss_of(model, tokens()).backward()
    model.to(dtype)
    for values in attachment.parameters():
        assert values.dtype == torch.promote_types(torch.float32, dtype)
        values.grad = None
    dense = dense_gradients(plain_twin(model).to(dtype), lambda model: loss_of(model, tokens()))
    attachment_gradient = loss_of(model, tokens())
    attachment_gradient.backward()
    assert_gradients_are_the_dense_ones(attachment, dense, max(1e-6, 2 * torch.finfo(dtype).eps))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    optimizer.step()
    for name, values in attachment.named_parameters():
        held = model.get_parameter(name).detach().take(attachment.mask.indices(name))
        assert torch.equal(held, values.detach().to(dtype))


@pytest.mark.parametrize("how", ["data", "part"])
def test_a_weight_that_was_put_elsewhere_is_followed(how):
    model = build("llama")
    attachment = hooked(model)
    up = model.model.layers[0].mlp.up_proj
    new = torch.randn_like(up.weight)
    if how == "data":
        up._parameters["weight"].data = new.clone()
    else:
        up.double()
        up.float()
    dense = dense_gradients(
        copy.deepcopy(build("llama")) if how == "part" else replaced(new),
        lambda model: loss_of(model, tokens()),
    )
    loss_of(model, tokens()).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)
    if how == "data":
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(attachment.dense_values(name), new.take(attachment.mask.indices(name)))


def replaced(weight: Tensor) -> nn.Module:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.copy_(weight)
    return model


def test_what_cannot_be_followed_is_refused_in_words():
    model = build("llama")
    hooked(model)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(RuntimeError, match="functional_call"):
        torch.func.functional_call(model, {name: torch.zeros(24, 16)}, (tokens(),))
    with pytest.raises(RuntimeError, match="detach before changing a model"):
        model.resize_token_embeddings(70)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_trains_as_the_original_does(family):
    model = build(family)
    attachment = hooked(model)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    loss_of(model, tokens()).backward()
    optimizer.step()
    optimizer.zero_grad()
    twin = copy.deepcopy(model)
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (model, twin)
    ]
    assert sum(p.numel() for p in twin.parameters() if p.requires_grad) == attachment.nnz
    for m, own in zip((model, twin), optimizers, strict=True):
        loss_of(m, tokens(seed=2)).backward()
        own.step()
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name
    loss_of(twin, tokens(seed=3)).backward()
    optimizers[1].step()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_an_average_of_models_follows_an_attached_one():
    model = build("qwen2")
    attachment = hooked(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.5)
    states = []
    for seed in range(3):
        loss_of(model, tokens(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        states.append(attachment.state_dict()["values"])
    average(input_ids=tokens())
    for name in attachment.mask.names:
        wanted = sum(state[name] for state in states) / 3
        held = average.module.get_parameter(name).detach().take(attachment.mask.indices(name))
        torch.testing.assert_close(held, wanted)


def test_a_copy_of_a_part_is_a_plain_part():
    model = build("qwen2")
    hooked(model)
    layer = copy.deepcopy(model.model.layers[0])
    assert type(layer.mlp.up_proj) is nn.Linear
    assert torch.equal(layer.mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_a_change_between_forward_and_backward_raises_and_looking_does_not():
    model = build("qwen2")
    attachment = hooked(model)
    loss = loss_of(model, tokens())
    loss_of(model, tokens(seed=2))
    attachment.state_dict()
    loss.backward(retain_graph=True)
    torch.optim.SGD(attachment.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("least", [0, 1 << 20])
def test_a_wide_input_that_is_a_product_is_not_kept_beside_its_factors(least, monkeypatch):
    monkeypatch.setattr("multiticket.sparse.hooked.layers.LEAST_KEPT", least)
    model = build("llama")
    dense = dense_gradients(model, lambda model: loss_of(model, tokens()))
    attachment = hooked(model)
    sizes = {}
    loss = loss_of(model, tokens())
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "LeanLinearBackward":
            sizes[id(node)] = [tuple(t.shape) for t in node.saved_tensors]
        waiting += [after for after, _ in node.next_functions]
    wide = [shapes for shapes in sizes.values() if shapes[0] == (16, 24)]
    assert len(wide) == (2 if least == 0 else 0)
    assert all(len(shapes) == 3 for shapes in wide)
    loss.backward()
    assert_gradients_are_the_dense_ones(attachment, dense)


@pytest.mark.parametrize("scope", ["norm.*", "*.bias", "all"])
@pytest.mark.parametrize("embeds", [False, True])
def test_norms_and_biases_alone_have_their_gradient_when_the_backward_pass_ends(scope, embeds):
    """Clipping reads it before any optimiser's step; no weight's hook runs, and perhaps no embedding's node."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 8) if embeds else None
            self.up, self.norm, self.act = nn.Linear(8, 8), nn.LayerNorm(8), nn.PReLU(8)

        def get_input_embeddings(self) -> nn.Module | None:
            return self.embed

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(self.up(x)))

    torch.manual_seed(0)
    model = Net()
    dense = copy.deepcopy(model)
    attachment = mt.attach(model, mt.Mask.from_rule(model, mt.MaskRule("random", 0.5, scope=scope)), "hooks")
    x = torch.randn(4, 8)
    for scale in (1.0, 2.0):
        model.zero_grad()
        dense.zero_grad()
        model(scale * x).square().mean().backward()
        dense(scale * x).square().mean().backward()
        for name, values in attachment.named_parameters():
            gradient = dict(dense.named_parameters())[name].grad
            if gradient is not None:
                wanted = gradient.flatten()[attachment.mask.indices(name)]
                torch.testing.assert_close(values.grad, wanted, msg=name)
