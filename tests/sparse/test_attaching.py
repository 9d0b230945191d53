"""Attaching is all or nothing, leaves what is frozen alone, and gives layers that are called as before."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from toy_models import build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


def described(model: nn.Module) -> list[tuple[object, ...]]:
    """All of a model that attaching changes."""
    return [
        (
            name,
            type(module),
            sorted(module.__dict__),
            [(key, id(p), None if p is None else p.requires_grad) for key, p in module._parameters.items()],
            [len(value) for value in module.__dict__.values() if isinstance(value, dict)],
        )
        for name, module in model.named_modules()
    ]


def test_within_inference_mode_it_is_refused_and_nothing_is_left():
    model = build("qwen2")
    before = described(model)
    mask = mt.Mask.random(model, 0.1)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        mt.attach(model, mask)
    assert described(model) == before
    with torch.inference_mode():
        made_there = build("qwen2")
    with pytest.raises(ValueError, match="inference_mode"):
        mt.attach(made_there, mask)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("last", [0, 9])
def test_an_error_on_the_way_leaves_nothing(error, last, monkeypatch):
    model = build("qwen2")
    before, mask, left = described(model), mt.Mask.random(model, 0.1), [last]
    indices = mt.Mask.indices

    def failing(self, name, *rest):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return indices(self, name, *rest)

    monkeypatch.setattr(mt.Mask, "indices", failing)
    with pytest.raises(error):
        mt.attach(model, mask)
    monkeypatch.undo()
    assert described(model) == before


def test_an_error_at_the_end_leaves_nothing(monkeypatch):
    model = build("qwen2")
    before = described(model)
    monkeypatch.setattr("multiticket.sparse.attachment.Attachment._watch", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mt.attach(model, mt.Mask.random(model, 0.1))
    assert described(model) == before


def whisper() -> nn.Module:
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    lengths = {"max_source_positions": 20, "max_target_positions": 32, "num_mel_bins": 8, "vocab_size": 61}
    config = hf.WhisperConfig(encoder_layers=1, decoder_layers=1, **heads, **widths, **special, **lengths)
    return hf.WhisperForConditionalGeneration(config)


def test_what_a_model_freezes_by_itself_does_not_train():
    model = whisper()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    assert frozen
    assert not set(frozen) & set(attachment.mask.names)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=1.0)
    model(input_features=torch.randn(2, 8, 40), labels=tokens(2)).loss.backward()
    optimizer.step()
    attachment.detach()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name not in frozen)
        assert torch.equal(parameter, before[name]) is (name in frozen)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["random", "columns", "magnitude", "numpy"])
def test_what_a_user_freezes_before_or_after_making_the_mask_does_not_train(when, method):
    model = build("llama")
    if when == "before":
        model.model.layers[0].requires_grad_(False)
    mask = mt.Mask.from_rule(model, mt.MaskRule(method, 0.1))
    model.model.layers[0].requires_grad_(False)
    attachment = mt.attach(model, mask)
    trained = {name.partition("layers.")[2][:2] for name in attachment.mask.names}
    assert trained - {""}
    assert "0." not in trained
    ticket = attachment.ticket()
    attachment.detach()
    ticket.check(model)


def test_a_scope_that_names_it_or_positions_in_it_train_what_is_frozen():
    model = build("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    model.model.layers[0].requires_grad_(False)
    named = mt.attach(model, mt.Mask.random(model, 0.1, scope=name))
    assert named.mask.names == [name]
    named.detach()
    given = mt.attach(model, mt.Mask.from_indices(model, {name: torch.arange(5)}))
    assert given.mask.names == [name]
    given.detach()
    assert not model.get_parameter(name).requires_grad
    model.requires_grad_(False)  # to be looked at: nobody has chosen what trains
    assert mt.Mask.random(model, 0.1).names == mt.Mask.random(build("llama"), 0.1).names


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 3), nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(input=self.table(input=tokens))


def test_layers_are_called_by_keyword_as_torchs():
    torch.manual_seed(0)
    model, ids = Named(), torch.arange(4)
    dense = copy.deepcopy(model)
    dense(ids).square().sum().backward()
    attachment = mt.attach(model, mt.Mask.random(model, 0.5))
    model(ids).square().sum().backward()
    for name, values in attachment.named_parameters():
        wanted = dense.get_parameter(name).grad.take(attachment.mask.indices(name))
        torch.testing.assert_close(values.grad, wanted)
    attachment.detach()
    model(ids)
