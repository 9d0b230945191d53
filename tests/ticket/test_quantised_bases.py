"""Tickets of quantised bases: bound to the base as it is quantised, applied beside its weights, and taken off again."""

from __future__ import annotations

import pytest
import torch
from quantised_models import (
    KINDS,
    ONE_EACH,
    dense,
    dtype_of,
    loss_of,
    needs_bitsandbytes,
    quantise,
    quantised,
    tokens,
    twin,
)
from torch import Tensor, nn

import multiticket as mt


def trained(model: nn.Module, seed: int = 0, density: float = 0.1, part: int = 0) -> tuple[mt.Ticket, Tensor]:
    """A ticket after a few steps, and the logits that it gave; the model is the base again."""
    attachment = mt.attach(model, mt.Mask.random(model, density, seed, part))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    for batch in range(3):
        loss_of(model, tokens(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    ticket, given = attachment.ticket(), logits(model)
    attachment.detach(keep=False)
    return ticket, given


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(9), use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_ticket_goes_through_its_file_onto_a_fresh_base_and_off_again(kind, tmp_path):
    ticket, given = trained(quantised(kind))
    ticket.save(tmp_path / "t.safetensors")
    loaded = mt.Ticket.load(tmp_path / "t.safetensors")
    model = quantised(kind)
    classes = [type(module) for module in model.modules()]
    before = logits(model)
    assert not torch.equal(before, given)
    for _ in range(2):
        with loaded.applied(model):
            assert torch.equal(logits(model), given)
        assert torch.equal(logits(model), before)
        assert [type(module) for module in model.modules()] == classes
    assert "save_pretrained" not in model.__dict__


@pytest.mark.parametrize("kind", ONE_EACH)
def test_several_tickets_in_every_legal_order(kind):
    """Disjoint parts together give what they give on the dense twin, whichever is taken off first."""
    one, _ = trained(quantised(kind), part=0)
    two, _ = trained(quantised(kind), part=1)
    model = quantised(kind)
    other = twin(model)
    before = logits(model)
    first = one.apply(model)
    only_one = logits(model)
    second = two.apply(model)
    for ticket in (one, two):
        for name, values in ticket.sections[0].values.items():
            other.get_parameter(name).data.view(-1)[ticket.mask.indices(name)] = values.to(dtype_of(kind))
    assert torch.equal(logits(model), logits(other))
    second.revert()
    assert torch.equal(logits(model), only_one)
    again = two.apply(model)
    first.revert()
    again.revert()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_overlapping_tickets(kind):
    one, given = trained(quantised(kind), seed=0)
    two, other = trained(quantised(kind), seed=0, density=0.2)
    model = quantised(kind)
    first = one.apply(model)
    with pytest.raises(ValueError, match="belong to another applied ticket"):
        two.apply(model)
    second = two.apply(model, overlapping=True)
    assert torch.equal(logits(model), other)
    with pytest.raises(ValueError, match="revert the later one first"):
        first.revert()
    second.revert()
    assert torch.equal(logits(model), given)
    first.revert()


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused_and_left_alone(kind):
    model = quantised(kind)
    ticket, _ = trained(model)
    near = quantised(kind)
    near.model.embed_tokens.weight.data.add_(1.0)
    of_the_base_before = mt.attach(dense(dtype_of(kind)), ticket.mask).ticket()
    for wrong, base in (
        (ticket, near),
        (ticket, dense(dtype_of(kind))),
        (ticket, twin(model)),
        (of_the_base_before, model),
    ):
        before = logits(base)
        with pytest.raises(ValueError, match="belongs to another base"):
            wrong.apply(base)
        assert torch.equal(logits(base), before)


@needs_bitsandbytes
def test_the_same_weights_quantised_otherwise_are_another_base():
    ticket, _ = trained(quantised("nf4"))
    for kind in ("fp4", "int8"):
        with pytest.raises(ValueError, match="belongs to another base"):
            ticket.check(quantised(kind, torch.bfloat16))
    ticket.check(quantised("nf4"))


@pytest.mark.parametrize("kind", ONE_EACH)
def test_what_a_ticket_cannot_be_done_to_quantised_weights(kind, tmp_path):
    model = quantised(kind)
    ticket, given = trained(model)
    with pytest.raises(ValueError, match="cannot be merged into quantised weights"):
        ticket.merge(model)
    applied = ticket.apply(model)
    with pytest.raises(ValueError, match="neither the base nor the trained one"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="revert it, then attach"):
        mt.attach(model, ticket.mask)
    assert torch.equal(logits(model), given)
    applied.revert()
    mt.attach(model, ticket.mask)
    with pytest.raises(ValueError, match="has an attachment"):
        ticket.apply(model)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_a_ticket_of_plain_weights_alone_is_merged_as_always(kind):
    model = quantised(kind)
    attachment = mt.attach(model, mt.Mask.random(model, 0.5, scope="*norm*"))
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(0.5)
    ticket, given = attachment.ticket(), logits(model)
    attachment.detach(keep=False)
    assert not torch.equal(logits(model), given)
    ticket.merge(model)
    assert torch.equal(logits(model), given)


@needs_bitsandbytes
def test_a_quantised_checkpoint_is_loaded_by_transformers_and_refused_by_merge(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from multiticket.ticket.merge import merge_checkpoint

    quantise(dense(), "nf4")
    dense().save_pretrained(tmp_path / "dense")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=config, dtype=torch.bfloat16, device_map="cpu"
    )
    model.train().save_pretrained(tmp_path / "nf4")
    ticket, given = trained(model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", device_map="cpu")
    with ticket.applied(again.train()):
        assert torch.equal(logits(again), given)
    with pytest.raises(ValueError, match="are quantised"):
        merge_checkpoint(tmp_path / "nf4", ticket, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
