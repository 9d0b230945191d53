"""On a GPU: every way's gradients against the definition, and steps that write what they should without waiting."""

from __future__ import annotations

import copy

import pytest
import torch
from test_exactness import DENSITY, assert_gradients_are_the_dense_ones, dense_gradients, loss_of
from toy_models import FAMILIES, build, tokens

import multiticket as mt
from multiticket.sparse.gradient.crop import row_starts
from multiticket.sparse.gradient.linear import linear_reference, linear_values_grad

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = ["sampled", "blocks"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def toy(family: str = "qwen2", dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.Tensor]:
    return build(family).to("cuda", dtype), tokens().cuda()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "count", "k"), [(1, 1, 1, 1), (33, 17, 129, 70), (300, 520, 77, 1560), (64, 48, 0, 9)]
)
def test_linear_gradient_is_the_dense_one_at_the_positions(method, dtype, rows, columns, count, k):
    generator = torch.Generator().manual_seed(rows)
    positions = torch.randperm(rows * columns, generator=generator)[:k].sort().values.int().cuda()
    dy = torch.randn(count, rows, generator=generator).cuda().to(dtype)
    x = torch.randn(count, columns, generator=generator).cuda().to(dtype)
    if method == "sampled" and not count:
        pytest.skip("the library's product wants a token")
    found = linear_values_grad(dy, x, positions, row_starts(positions, rows, columns), method)
    wanted = linear_reference(dy.double(), x.double(), positions)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5 * max(1, count) ** 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_the_models_own_forward(family):
    model, ids = toy(family)
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense, relative=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_each_linear_method_in_a_whole_model(method):
    model, ids = toy("llama")
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY), gradient=method)
    assert method in attachment.gradient_methods().values()
    loss_of(model, ids).backward()
    assert_gradients_are_the_dense_ones(attachment, dense, relative=1e-4)


@pytest.mark.parametrize("rule", ["random", "columns", "rows"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fused", [True, False])
def test_steps_write_the_rounded_values_and_nothing_else(rule, dtype, fused):
    model, ids = toy(dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = mt.Mask.from_rule(model, mt.MaskRule(rule, DENSITY))
    attachment = mt.attach(model, mask)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3, fused=fused)
    for _ in range(3):
        loss_of(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, values in attachment.named_parameters():
        dense = dict(model.named_parameters())[name].detach().flatten()
        at = mask.indices(name, "cuda")
        assert torch.equal(dense[at], values.detach().to(dtype)), name
        away = torch.ones_like(dense, dtype=torch.bool)
        away[at] = False
        assert torch.equal(dense[away], before[name].flatten()[away]), name
    attachment.detach(keep=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_values_changed_by_hand_are_noticed_before_the_next_forward_pass():
    model, ids = toy(dtype=torch.bfloat16)
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    loss_of(model, ids).backward()
    optimizer.step()
    with torch.no_grad():
        for values in attachment.parameters():
            values.data.add_(1)
    loss_of(model, ids)
    for name, values in attachment.named_parameters():
        assert torch.equal(attachment.dense_values(name), values.detach().bfloat16()), name
        dense = dict(model.named_parameters())[name].detach()
        assert torch.equal(dense.take(attachment.mask.indices(name, "cuda")), values.detach().bfloat16())


@pytest.mark.parametrize("method", ["hooks", "blocks"])
def test_forward_backward_and_the_write_never_wait_for_the_device(method):
    """After the first step, which compiles kernels and makes tables."""
    model, ids = toy(dtype=torch.bfloat16)
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY), gradient=method)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3, fused=True)
    layer, head = model.model.layers[0].mlp, model.lm_head  # attention masks are the library's, and wait
    for step in range(2):
        hidden = model.model.embed_tokens(ids)
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            head(layer(model.model.norm(hidden))).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_loss_scaling(dtype):
    model, ids = toy()
    dense = dense_gradients(model, lambda model: loss_of(model, ids))
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    with torch.autocast("cuda", dtype):
        loss = loss_of(model, ids)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, values in attachment.named_parameters():
        assert values.grad.dtype == torch.float32
        wanted = dense[name][attachment.mask.indices(name, "cuda")]
        torch.testing.assert_close(values.grad, wanted, rtol=0, atol=0.05 * float(dense[name].abs().max()))
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("method", ["hooks", "blocks"])
def test_compiled_in_one_graph_the_gradients_are_the_same(method):
    model, ids = toy(dtype=torch.bfloat16)
    attachment = mt.attach(model, mt.Mask.random(model, DENSITY), gradient=method)
    loss_of(model, ids).backward()
    eager = {name: values.grad.clone() for name, values in attachment.named_parameters()}
    for values in attachment.parameters():
        values.grad = None
    torch.compile(loss_of, fullgraph=True, backend="aot_eager")(model, ids).backward()
    for name, values in attachment.named_parameters():
        torch.testing.assert_close(
            values.grad, eager[name], rtol=0.02, atol=0.02 * float(eager[name].abs().max())
        )


def test_a_model_moved_to_the_gpu_after_attach_trains_as_one_attached_there():
    model = build("qwen2")
    moved = copy.deepcopy(model)
    ids = tokens().cuda()
    model.cuda()
    first = mt.attach(model, mt.Mask.random(model, DENSITY))
    second = mt.attach(moved, mt.Mask.random(moved, DENSITY))
    moved.cuda()
    for attached, attachment in ((model, first), (moved, second)):
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3, fused=True)
        loss_of(attached, ids).backward()
        optimizer.step()
    for (name, ours), (_, theirs) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=name)
    assert first.base_fingerprint == second.base_fingerprint
