"""Several tickets in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ticket_models import Toy, bits, make_model, make_ticket, same_bits

from multiticket.mask import Mask
from multiticket.ticket import Ticket, compose


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
def test_disjoint_tickets_compose_to_what_applying_them_in_turn_does(parts: list[int]) -> None:
    model = make_model()
    base = bits(model)
    tickets = [make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in parts]
    for ticket in tickets:
        ticket.apply(model)
    in_turn = bits(model)
    fresh = make_model()
    with compose(tickets).applied(fresh):
        assert same_bits(bits(fresh), in_turn)
    assert same_bits(bits(fresh), base)


def test_a_composed_file_stores_no_positions_and_keeps_every_rule(model: Toy, tmp_path: Path) -> None:
    tickets = [make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in range(3)]
    whole = compose(tickets)
    whole.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert [section.mask.rule for section in loaded.sections] == [ticket.mask.rule for ticket in tickets]
    assert loaded.nnz == sum(ticket.nnz for ticket in tickets) == loaded.mask.nnz
    assert loaded.provenance["composed_of"] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert len(compose([loaded, make_ticket(model, Mask.random(model, 0.1, part=3))]).sections) == 4


def overlapping(model: Toy) -> tuple[list[Ticket], int]:
    tickets = [make_ticket(model, Mask.random(model, 0.3, seed=seed), seed) for seed in range(3)]
    count = 0
    for name in tickets[0].mask.shapes:
        flats = torch.cat([ticket.mask.indices(name) for ticket in tickets])
        count += int((flats.unique(return_counts=True)[1] > 1).sum())
    return tickets, count


def test_overlap_is_refused_with_its_count(model: Toy) -> None:
    tickets, count = overlapping(model)
    with pytest.raises(ValueError, match=f"^{count} positions belong to more than one"):
        compose(tickets)
    with pytest.raises(ValueError, match="refuse, last, mean, not 'sum'"):
        compose(tickets, "sum")


def test_last_is_as_applying_in_turn(model: Toy, tmp_path: Path) -> None:
    tickets, count = overlapping(model)
    compose(tickets, "last").save(tmp_path / "t")
    whole = Ticket.load(tmp_path / "t")
    assert whole.provenance["collisions"] == {"positions": count, "rule": "last"}
    twin = make_model()
    for ticket in tickets:
        ticket.apply(twin, overlapping=True)
    before = bits(model)
    with whole.applied(model):
        assert same_bits(bits(model), bits(twin))
    assert same_bits(bits(model), before)


def test_mean_is_the_mean_where_positions_collide(model: Toy) -> None:
    tickets, _ = overlapping(model)
    compose(tickets, "mean").merge(model)
    weights = dict(model.named_parameters())
    untouched = dict(make_model().named_parameters())
    for name, weight in weights.items():
        flat = weight.detach().reshape(-1)
        values: dict[int, list[float]] = {}
        for ticket in tickets:
            if name in ticket.mask.names:
                found = ticket.sections[0].values[name].tolist()
                for position, value in zip(ticket.mask.indices(name).tolist(), found, strict=True):
                    values.setdefault(position, []).append(value)
        expected = untouched[name].detach().reshape(-1).clone()
        for position, several in values.items():
            expected[position] = torch.tensor(sum(several) / len(several), dtype=torch.float64).bfloat16()
        assert torch.equal(flat.nan_to_num(), expected.nan_to_num())


def test_every_sections_base_is_checked(model: Toy) -> None:
    one = make_ticket(model, Mask.random(model, 0.1, part=0))
    other = make_ticket(make_model(seed=4), Mask.random(model, 0.1, part=1))
    before = bits(model)
    with pytest.raises(ValueError, match="another base"):
        compose([one, other]).apply(model)
    assert same_bits(bits(model), before)


def test_nothing_and_other_models_are_refused(model: Toy) -> None:
    with pytest.raises(ValueError, match="at least one"):
        compose([])
    one = make_ticket(model, Mask.random(model, 0.1))

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = torch.nn.Parameter(torch.zeros(15, 19))

    stranger = Other()
    with pytest.raises(ValueError, match="different models"):
        compose([one, make_ticket(stranger, Mask.random(stranger, 0.1))])
