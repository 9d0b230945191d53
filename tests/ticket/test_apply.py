"""Apply and revert: exact, in every legal order, refused in every other, from many threads."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ticket_models import Toy, bits, make_model, make_ticket, same_bits

from multiticket.mask import Mask
from multiticket.ticket import Ticket, apply


def at_positions(model: torch.nn.Module, ticket: Ticket, name: str) -> torch.Tensor:
    return dict(model.named_parameters())[name].detach().reshape(-1)[ticket.mask.indices(name)]


def test_apply_writes_the_values_and_nothing_else(model: Toy, ticket: Ticket) -> None:
    before = bits(model)
    ticket.apply(model)
    after = bits(model)
    for name in before:
        expected = before[name].reshape(-1).clone()
        if name in ticket.mask.names:
            expected[ticket.mask.indices(name)] = ticket.sections[0].values[name].view(torch.int16)
        assert torch.equal(after[name].reshape(-1), expected)
    assert model.lm_head.weight is model.embed.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_revert_is_bit_exact_in_any_dtype(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    ticket = make_ticket(model, Mask.random(model, 0.3))
    before = bits(model)
    for _ in range(3):
        applied = ticket.apply(model)
        assert not same_bits(bits(model), before)
        applied.revert()
        assert same_bits(bits(model), before)


def test_a_nan_with_a_payload_and_minus_zero_come_back(model: Toy) -> None:
    mask = Mask.from_indices(model, {"embed.weight": torch.arange(480)})
    before = bits(model)
    assert int(before["embed.weight"].view(-1)[5]) == 0x7F85
    with make_ticket(model, mask).applied(model):
        assert not model.embed.weight.isnan().any()
    assert same_bits(bits(model), before)
    raw = torch.tensor([0x7F85, -0x8000, 0x7FC1], dtype=torch.int16).view(torch.bfloat16)
    few = Mask.from_indices(model, {"turned": torch.tensor([1, 2, 3])})
    ticket = make_ticket(model, few)
    exact = Ticket(few, {"turned": raw}, ticket.fingerprint)
    exact.merge(model)
    assert torch.equal(model.turned.detach().reshape(-1)[1:4].view(torch.int16), raw.view(torch.int16))


def test_context_managers_revert_also_after_an_error(model: Toy, ticket: Ticket) -> None:
    before = bits(model)
    with pytest.raises(RuntimeError, match="inside"), ticket.applied(model):
        raise RuntimeError("inside")
    assert same_bits(bits(model), before)
    with ticket.apply(model) as applied:
        assert applied.active
        applied.revert()
    assert not applied.active
    assert same_bits(bits(model), before)


def test_base_in_bf16_is_the_same_base_in_fp32(model: Toy, ticket: Ticket) -> None:
    wide = copy.deepcopy(model).float()
    before = bits(wide)
    with ticket.applied(wide):
        for name in ticket.mask.names:
            values = ticket.sections[0].values[name].float()
            assert torch.equal(at_positions(wide, ticket, name), values)
    assert same_bits(bits(wide), before)


def test_values_are_rounded_to_the_weights_dtype(model: Toy) -> None:
    ticket = make_ticket(model, Mask.random(model, 0.1), dtype=torch.float32)
    ticket.apply(model)
    for name in ticket.mask.names:
        assert torch.equal(at_positions(model, ticket, name), ticket.sections[0].values[name].bfloat16())


def test_a_model_cast_in_between_reverts_to_its_cast_base(model: Toy, ticket: Ticket) -> None:
    expected = bits(copy.deepcopy(model).float())
    applied = ticket.apply(model)
    model.float()
    applied.revert()
    assert same_bits(bits(model), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=14), st.randoms(use_true_random=False))
def test_any_sequence_of_operations_comes_back_to_the_base(
    operations: list[tuple[int, bool]], order: object
) -> None:
    """Four disjoint tickets and two that overlap them, applied and reverted at random against a plain model."""
    model = make_model()
    base = bits(model)
    masks = [Mask.random(model, 0.1, part=part) for part in range(4)] + [
        Mask.random(model, 0.2, seed=s) for s in (8, 9)
    ]
    tickets = [make_ticket(model, mask, seed) for seed, mask in enumerate(masks)]
    active: list[tuple[int, apply.Applied]] = []

    def assert_as_expected() -> None:
        expected = {name: content.reshape(-1).clone() for name, content in base.items()}
        for number, _ in active:
            for name, values in tickets[number].sections[0].values.items():
                expected[name][masks[number].indices(name)] = values.view(torch.int16)
        found = bits(model)
        assert all(torch.equal(found[name].reshape(-1), expected[name]) for name in found)

    for number, overlapping in operations:
        at = next((i for i, (n, _) in enumerate(active) if n == number), None)
        if at is None:
            collides = any(shared(masks[number], masks[n]) for n, _ in active)
            if collides and not overlapping:
                with pytest.raises(ValueError, match="positions of this ticket belong to another"):
                    tickets[number].apply(model)
            else:
                active.append((number, tickets[number].apply(model, overlapping=overlapping)))
        elif any(shared(masks[number], masks[n]) for n, _ in active[at + 1 :]):
            with pytest.raises(ValueError, match="revert the later one first"):
                active[at][1].revert()
        else:
            active.pop(at)[1].revert()
        assert_as_expected()
    while active:
        active.pop()[1].revert()
    assert same_bits(bits(model), base)


def shared(one: Mask, other: Mask) -> int:
    return sum(len(set(one.indices(n).tolist()) & set(other.indices(n).tolist())) for n in one.names)


def test_the_refusal_counts_colliding_positions(model: Toy) -> None:
    one, other = (Mask.random(model, 0.2, seed=s) for s in (1, 2))
    first = make_ticket(model, one)
    second = make_ticket(model, other)
    applied = first.apply(model)
    with pytest.raises(ValueError, match=f"^{shared(one, other)} positions of this ticket belong to another"):
        second.apply(model)
    with pytest.raises(ValueError, match=f"^{shared(one, other)} positions of this ticket belong to another"):
        second.merge(model)
    on_top = second.apply(model, overlapping=True)
    with pytest.raises(ValueError, match=f"shares {shared(one, other)} positions"):
        applied.revert()
    on_top.revert()
    applied.revert()
    with pytest.raises(ValueError, match="already been reverted"):
        applied.revert()


def test_a_ticket_trained_on_top_of_another_applies_on_top_of_it(model: Toy) -> None:
    before = bits(model)
    first = make_ticket(model, Mask.random(model, 0.2, seed=1))
    with first.applied(model):
        second = make_ticket(model, Mask.random(model, 0.2, seed=2))
    with pytest.raises(ValueError, match="another base"):
        second.apply(model)
    with first.applied(model), second.applied(model, overlapping=True):
        pass
    assert same_bits(bits(model), before)


def test_another_base_is_refused_and_left_alone(ticket: Ticket) -> None:
    other = make_model(seed=9)
    before = bits(other)
    for operation in (ticket.check, ticket.apply, ticket.merge):
        with pytest.raises(ValueError, match=r"another base.*fingerprint [0-9a-f]{12}, found [0-9a-f]{12}"):
            operation(other)
    assert same_bits(bits(other), before)


def test_one_changed_weight_makes_another_base(model: Toy, ticket: Ticket) -> None:
    ticket.check(model)
    position = int(ticket.mask.indices("turned")[0])
    with torch.no_grad():
        model.turned[position // 20, position % 20] += 1
    with pytest.raises(ValueError, match="another base"):
        ticket.check(model)


def test_another_architecture_is_refused(model: Toy) -> None:
    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = torch.nn.Parameter(torch.zeros(15, 19))

    with pytest.raises(ValueError, match=r"this one has no parameter 'embed\.weight'"):
        make_ticket(model, Mask.random(model, 0.1, scope="embed*")).apply(Narrow())
    only = make_ticket(model, Mask.random(model, 0.1, scope="turned"))
    with pytest.raises(ValueError, match=r"turned has shape \(15, 19\) here, \(15, 20\) there"):
        only.apply(Narrow())


def test_an_attached_or_empty_model_is_refused(model: Toy, ticket: Ticket) -> None:
    model.layers[0]["up"].register_parameter("weight__values", torch.nn.Parameter(torch.zeros(3)))
    before = bits(model)
    for operation in (ticket.apply, ticket.merge, ticket.check):
        with pytest.raises(ValueError, match=r"has an attachment; call its detach\(\)"):
            operation(model)
    assert same_bits(bits(model), before)
    with pytest.raises(ValueError, match="meta device"):
        ticket.apply(Toy().to("meta"))


def test_merge_is_apply_for_good(model: Toy, ticket: Ticket) -> None:
    twin = copy.deepcopy(model)
    ticket.merge(model)
    ticket.apply(twin)
    assert same_bits(bits(model), bits(twin))


def test_wrappers_are_the_same_model(model: Toy, ticket: Ticket) -> None:
    wrapped = torch.nn.Module()
    wrapped.module = model
    before = bits(model)
    applied = ticket.apply(wrapped)
    with pytest.raises(ValueError, match="belong to another"):
        ticket.apply(model)
    applied.revert()
    assert same_bits(bits(model), before)


def test_a_failure_on_the_way_leaves_the_base(
    model: Toy, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = bits(model), []

    def fails_at_the_third(*arguments: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        original(*arguments)

    original = apply.scatter_
    monkeypatch.setattr(apply, "scatter_", fails_at_the_third)
    with pytest.raises(RuntimeError, match="out of memory"):
        ticket.apply(model)
    assert same_bits(bits(model), before)
    monkeypatch.undo()
    ticket.apply(model).revert()


def test_models_are_freed_with_their_last_user(ticket: Ticket) -> None:
    model = make_model()
    alive = weakref.ref(model)
    ticket.apply(model)
    del model
    gc.collect()
    assert alive() is None


def test_threads_never_leave_a_mixture(model: Toy) -> None:
    """Eight threads apply and revert two overlapping tickets; whoever gets in sees its own values whole."""
    before = bits(model)
    tickets = [make_ticket(model, Mask.random(model, 0.3, seed=s), s) for s in (1, 2)]
    mixtures, entered, refused = [], [0], [0]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        ticket = tickets[number % 2]
        start.wait()
        for _ in range(25):
            try:
                applied = ticket.apply(model)
            except ValueError:
                refused[0] += 1
                continue
            entered[0] += 1
            for name, values in ticket.sections[0].values.items():
                if not torch.equal(at_positions(model, ticket, name), values):
                    mixtures.append(name)
            applied.revert()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mixtures
    assert entered[0] > 0
    assert same_bits(bits(model), before)


def test_threads_with_disjoint_tickets_all_get_in(model: Toy) -> None:
    before = bits(model)
    tickets = [make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in range(6)]
    errors: list[Exception] = []

    def work(ticket: Ticket) -> None:
        try:
            for _ in range(15):
                with ticket.applied(model):
                    name = ticket.mask.names[0]
                    assert torch.equal(at_positions(model, ticket, name), ticket.sections[0].values[name])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(ticket,)) for ticket in tickets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert same_bits(bits(model), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_apply_and_revert_on_a_gpu(model: Toy, ticket: Ticket) -> None:
    model.cuda()
    before = bits(model)
    with ticket.applied(model):
        name = ticket.mask.names[0]
        assert torch.equal(at_positions(model.cpu(), ticket, name), ticket.sections[0].values[name])
        model.cuda()
    assert same_bits(bits(model), before)


def test_a_weight_that_the_ticket_does_not_change_may_be_any(model: Toy, ticket: Ticket) -> None:
    """As docs/ticket-format.md says of the fingerprint."""
    changed = set(ticket.mask.indices("turned").tolist())
    position = next(i for i in range(model.turned.numel()) if i not in changed)
    with torch.no_grad():
        model.turned[position // 20, position % 20] += 1
    ticket.check(model)
