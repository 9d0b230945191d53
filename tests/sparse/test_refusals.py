"""What an attachment cannot be right on is refused in words, and the model is left as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_models import build
from two_ranks import toy

import multiticket as mt
from multiticket.sparse.support import refuse_strategy


class Params4bit(nn.Parameter):
    """Called as bitsandbytes calls its own."""


class PackedTensor(torch.Tensor):
    """A tensor that keeps its numbers in another way than it shows, as torchao's do."""


def with_head(parameter: nn.Parameter) -> nn.Module:
    model = build("qwen2")
    model.lm_head._parameters["weight"] = parameter
    return model


def four_bit() -> nn.Module:
    return with_head(Params4bit(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False))


def eight_bit() -> nn.Module:
    return with_head(nn.Parameter(torch.zeros(61, 16, dtype=torch.int8), requires_grad=False))


def float8() -> nn.Module:
    return with_head(nn.Parameter(torch.zeros(61, 16).to(torch.float8_e4m3fn), requires_grad=False))


def gptq() -> nn.Module:
    model = build("qwen2")
    model.model.layers[0].mlp.up_proj.register_buffer("qweight", torch.zeros(2, 24, dtype=torch.int32))
    return model


def told_by_transformers() -> nn.Module:
    model = build("qwen2")
    model.quantization_method = SimpleNamespace(value="bitsandbytes")
    return model


@pytest.mark.parametrize(
    ("quantised", "shown"),
    [
        (four_bit, "lm_head.weight is a Params4bit"),
        (eight_bit, "lm_head.weight has dtype int8"),
        (float8, "lm_head.weight has dtype float8_e4m3fn"),
        (gptq, "up_proj.qweight has dtype int32"),
        (told_by_transformers, "bitsandbytes"),
    ],
)
def test_quantised_bases(quantised, shown):
    mask = mt.Mask.random(build("qwen2"), 0.1)
    model = quantised()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match="quantised base") as error:
        mt.attach(model, mask)
    assert shown in str(error.value)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_weights_that_are_no_plain_tensors():
    layer = nn.Linear(4, 4)
    mask = mt.Mask.random(layer, 0.5)
    layer.weight = nn.Parameter(torch.randn(4, 4).as_subclass(PackedTensor))
    with pytest.raises(ValueError, match="held as a PackedTensor"):
        mt.attach(layer, mask)
    assert layer.weight.requires_grad


def test_weights_that_deepspeed_partitioned():
    model = toy()
    mask = mt.Mask.random(model, 0.3)
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number  # with the weight itself elsewhere, as ZeRO-3 leaves it
        parameter.data = torch.empty(0)
    with pytest.raises(ValueError, match="ZeRO-3 partitions the weights"):
        mt.attach(model, mask)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "set fsdp_version to 2"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "use FSDP2"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, "ZeRO-2 copies what trains"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=1)}, "use plain data parallelism"),
    ],
)
def test_what_accelerate_is_set_to(state, words):
    with pytest.raises(ValueError, match=words):
        refuse_strategy(SimpleNamespace(state=SimpleNamespace(**state)))


@pytest.mark.parametrize(
    "state", [{}, {"fsdp_plugin": None}, {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}]
)
def test_what_works_is_not_refused(state):
    refuse_strategy(SimpleNamespace(state=SimpleNamespace(**state)))
