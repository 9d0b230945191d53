"""A quantised base trains as its dequantised twin does: the same positions, logits, gradients, steps and tickets."""

from __future__ import annotations

import copy

import pytest
import torch
from quantised_models import (
    KINDS,
    ONE_EACH,
    dense,
    dtype_of,
    loss_of,
    needs_bitsandbytes,
    needs_torchao,
    quantise,
    quantised,
    tokens,
    twin,
)
from torch import Tensor, nn

import multiticket as mt
from multiticket.mask.quantised import dequantise, is_quantised

DENSITY = 0.1
UP = "model.layers.0.mlp.up_proj.weight"


def attached(model: nn.Module, **rule) -> mt.Attachment:
    mask = mt.Mask.from_rule(
        model, mt.MaskRule(rule.pop("method", "random"), rule.pop("density", DENSITY), **rule)
    )
    return mt.attach(model, mask, gradient="hooks")


def gradients(attachment: mt.Attachment) -> dict[str, Tensor]:
    return {name: values.grad.clone() for name, values in attachment.named_parameters()}


def train(model: nn.Module, attachment: mt.Attachment, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    for seed in range(steps):
        loss_of(model, tokens(seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(9), use_cache=False).logits


# Positions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["random", "columns", "magnitude"])
def test_one_rule_gives_one_mask(kind, method):
    """Of the model that was quantised; where a rule looks at weights, of the model that they stand for."""
    model = quantised(kind)
    other = twin(model) if method == "magnitude" else dense(dtype_of(kind))
    masks = [mt.Mask.from_rule(m, mt.MaskRule(method, DENSITY, seed=3)) for m in (model, other)]
    assert masks[0].shapes == masks[1].shapes
    assert masks[0].names == masks[1].names
    for name in masks[0].names:
        assert torch.equal(masks[0].indices(name), masks[1].indices(name))


# Training


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_steps_and_logits_are_those_of_the_dense_twin(kind, checkpointing):
    model = quantised(kind)
    other = twin(model)
    if checkpointing is not None:
        for m in (model, other):
            m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    mine, theirs = attached(model), attached(other)
    assert torch.equal(logits(model), logits(other))
    for m in (model, other):
        loss_of(m, tokens()).backward()
    wanted = gradients(theirs)
    for name, gradient in gradients(mine).items():
        scale = float(wanted[name].abs().max())
        assert scale > 0
        rounding = torch.finfo(dtype_of(kind)).eps
        torch.testing.assert_close(gradient, wanted[name], rtol=rounding, atol=scale * rounding)
    assert all(p.grad is None for n, p in model.named_parameters() if not n.endswith("__values"))
    for attachment in (mine, theirs):
        for values in attachment.parameters():
            values.grad = None
    train(model, mine)
    train(other, theirs)
    assert torch.equal(logits(model), logits(other))
    for name in mine.mask.names:
        assert torch.equal(mine.dense_values(name), theirs.dense_values(name))


@pytest.mark.parametrize("method", ["columns", "rows", "blocks"])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_structured_masks(kind, method):
    model = quantised(kind)
    other = twin(model)
    mine, theirs = (attached(m, method=method, density=0.03) for m in (model, other))
    for m in (model, other):
        loss_of(m, tokens()).backward()
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(
            mine_grad(mine, name), gradient, rtol=0.01, atol=0.01 * float(gradient.abs().max())
        )


def mine_grad(attachment: mt.Attachment, name: str) -> Tensor:
    return dict(attachment.named_parameters())[name].grad


@pytest.mark.parametrize("kind", ONE_EACH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_other_compute_dtypes(kind, dtype):
    """Of the same bits of weights, within one rounding of the dtype that is computed in."""
    model = quantised(kind, torch.float32)
    other = twin(model)
    mine, theirs = attached(model), attached(other)
    enabled = dtype != torch.float32
    for m in (model, other):
        for module in m.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = dtype
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = loss_of(m, tokens())
        loss.backward()
    tolerance = 8 * torch.finfo(dtype).eps if enabled else 1e-5
    for name, gradient in gradients(theirs).items():
        atol = tolerance * float(gradient.abs().max())
        torch.testing.assert_close(mine_grad(mine, name), gradient, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_nothing_dense_is_kept_between_the_passes(kind):
    model = quantised(kind)
    attached(model)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        loss_of(model, tokens()).backward()
    of_layers = {
        tuple(dequantise(m).shape) for m in model.modules() if is_quantised(m._parameters.get("weight"))
    }
    assert of_layers
    assert not {*kept, *(shape[::-1] for shape in kept)} & of_layers


@pytest.mark.parametrize("kind", ONE_EACH)
def test_the_base_is_shown_for_a_reference_policy(kind):
    model = quantised(kind)
    attachment = attached(model)
    base = logits(model)
    train(model, attachment)
    trained = logits(model)
    assert not torch.equal(base, trained)
    with attachment.disabled():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_step_between_the_passes_is_noticed(kind):
    model = quantised(kind)
    attachment = attached(model, scope="*up_proj.weight")
    loss = loss_of(model, tokens())
    with torch.no_grad():
        next(attachment.parameters()).add_(0.1)
    attachment.flush()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", ONE_EACH)
def test_values_changed_by_hand_are_served(kind):
    model = quantised(kind)
    attachment = attached(model, scope="*proj.weight")
    other = twin(model)
    views = dict(attachment.named_parameters())
    with torch.no_grad():
        views[UP].add_(0.25)
        other.get_parameter(UP).view(-1)[attachment.mask.indices(UP)] = views[UP].to(dtype_of(kind))
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_mask_of_plain_weights_alone_leaves_quantised_layers_to_their_library(kind):
    model = quantised(kind)
    before = {name: module.__class__ for name, module in model.named_modules()}
    attachment = attached(model, scope="*norm*,*embed*")
    loss_of(model, tokens()).backward()
    assert all(values.grad.abs().max() > 0 for values in attachment.parameters())
    attachment.detach()
    assert {name: module.__class__ for name, module in model.named_modules()} == before


@needs_torchao
@pytest.mark.parametrize("fused", [False, True])
def test_a_head_that_is_read_past_its_layer(fused):
    """torchao's weights can be multiplied by anybody, as TRL's fused head does."""
    from trl.trainer.utils import add_fused_lm_head

    model = quantised("torchao-int8", head=True)
    other = twin(model)
    mine, theirs = attached(model), attached(other)
    for m in (model, other):
        if fused:
            add_fused_lm_head(m)
            m(input_ids=tokens(), labels=tokens(), fused_lm_head=True).loss.backward()
        else:
            hidden = m.model(input_ids=tokens(), use_cache=False).last_hidden_state
            (hidden @ m.lm_head.weight.t()).float().square().mean().backward()
    for name, gradient in gradients(theirs).items():
        assert gradient.abs().max() > 0
        atol = 0.01 * float(gradient.abs().max())
        torch.testing.assert_close(mine_grad(mine, name), gradient, rtol=0.01, atol=atol)


# Keeping and going on


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_it_stopped(kind):
    model = quantised(kind)
    attachment = attached(model)
    train(model, attachment, steps=2)
    state = attachment.state_dict()
    again = quantised(kind)
    second = attached(again)
    second.load_state_dict(state)
    assert torch.equal(logits(model), logits(again))
    train(model, attachment, steps=2)
    train(again, second, steps=2)
    assert torch.equal(logits(model), logits(again))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_the_models_own_state_dict_goes_into_a_fresh_one(kind):
    model = quantised(kind)
    attachment = attached(model)
    train(model, attachment)
    again = quantised(kind)
    attached(again)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = {name: tensor for name, tensor in state.items() if name.endswith("__values")}
    assert len(values) == 2
    again.load_state_dict(values, strict=False)
    assert torch.equal(logits(model), logits(again))


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_the_base_and_nothing_else(kind):
    model = quantised(kind)
    classes = {name: type(module) for name, module in model.named_modules()}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = logits(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attachment = attached(model)
    train(model, attachment)
    with pytest.raises(ValueError, match="cannot keep trained values"):
        attachment.detach()
    attachment.detach(keep=False)
    assert torch.equal(logits(model), before)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    after = model.state_dict()
    assert set(after) == set(state)
    assert all(same(tensor, state[name]) for name, tensor in after.items())
    assert "save_pretrained" not in model.__dict__


def same(one: Tensor, other: Tensor) -> bool:
    if is_quantised(one) and hasattr(one, "dequantize") and not hasattr(one, "quant_state"):
        one, other = one.dequantize(), other.dequantize()
    return torch.equal(one, other)


# Moves


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_model_trains_on(kind):
    model = quantised(kind)
    attachment = attached(model)
    train(model, attachment, steps=1)
    before = logits(model)
    model.to("cpu")
    model.cpu()
    assert torch.equal(logits(model), before)
    train(model, attachment, steps=1)
    assert not torch.equal(logits(model), before)


# What is refused


@pytest.mark.parametrize("kind", ONE_EACH)
def test_what_quantised_weights_cannot_do_is_refused_in_words(kind, tmp_path):
    model = quantised(kind)
    with pytest.raises(ValueError, match="writes into dense weights"):
        mt.attach(model, mt.Mask.random(model, DENSITY), gradient="blocks")
    attachment = attached(model)
    with pytest.raises(ValueError, match="cannot be copied"):
        copy.deepcopy(model)
    with pytest.raises(ValueError, match="neither the base nor the trained one"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RuntimeError, match="skip the hooks"):
        torch.autograd.grad(loss_of(model, tokens()), list(attachment.parameters()))
    replaced = quantised(kind, dtype=torch.float32).model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj._parameters["weight"] = replaced
    with pytest.raises(RuntimeError, match=rf"{UP} was replaced"):
        logits(model)


@needs_torchao
def test_torchao_tensors_that_quantise_inputs_or_cannot_be_read():
    from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, quantize_

    for config, words in (
        (Int8DynamicActivationInt8WeightConfig(), "quantise weights only"),
        (Float8WeightOnlyConfig(), "Float8Tensor cannot be turned into"),
    ):
        layer = nn.Sequential(nn.Linear(64, 64).bfloat16())
        quantize_(layer, config)
        with pytest.raises(ValueError, match=words):
            mt.attach(layer, mt.Mask.random(layer, DENSITY))


@needs_bitsandbytes
def test_layers_of_bitsandbytes_that_are_no_linear_ones_or_were_packed_anew():
    import bitsandbytes as bnb

    table = nn.Sequential(bnb.nn.EmbeddingNF4(64, 64).to("cpu"))
    with pytest.raises(ValueError, match="only linear ones can train"):
        mt.attach(table, mt.Mask.random(table, DENSITY))
    model = quantised("nf4")
    model.model.layers[0].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="load the model again"):
        attached(model)


@needs_bitsandbytes
def test_a_bias_that_its_library_would_cast_in_place():
    model = quantise(dense(torch.float32), "nf4")
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.bfloat16
    with pytest.raises(ValueError, match="casts it in place"):
        attached(model, scope="*bias")
    attached(model)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_layers_whose_forward_was_replaced(kind):
    model = quantised(kind)
    layer = model.model.layers[0].mlp.up_proj
    layer.forward = layer.forward
    with pytest.raises(ValueError, match="its forward was replaced"):
        attached(model)


# Others' trainers


@pytest.mark.parametrize("way", ["nf4", "int8", "torchao"])
def test_grpo_trains_what_transformers_quantised(way, tmp_path):
    """transformers' Trainer refuses quantised models without adapters; it is told that something else trains."""
    from test_trl import grpo
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    pytest.importorskip("torchao" if way == "torchao" else "bitsandbytes")
    dense().save_pretrained(tmp_path / "dense")
    if way == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=way == "nf4", load_in_8bit=way == "int8", bnb_4bit_quant_type="nf4"
        )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    ).train()
    attachment = attached(model)
    assert any(not tensor.in_memory for tensor in attachment._tensors.values())
    before = attachment.state_dict()["values"]
    grpo(model, tmp_path / "run").train()
    after = attachment.state_dict()["values"]
    assert all(not torch.equal(before[name], after[name]) for name in before)
    attachment.detach(keep=False)
    assert "_hf_peft_config_loaded" not in model.__dict__
