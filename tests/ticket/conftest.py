"""Fixtures of the ticket tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ticket_models import Toy, make_model, make_ticket

from multiticket.mask import Mask, MaskRule
from multiticket.ticket import Ticket, compose


@pytest.fixture
def model() -> Toy:
    return make_model()


@pytest.fixture
def ticket(model: Toy) -> Ticket:
    return make_ticket(model, Mask.random(model, 0.1, seed=3))


@pytest.fixture(params=["random", "numpy", "columns", "layers", "magnitude", "composed"])
def any_ticket(request: pytest.FixtureRequest, model: Toy) -> Ticket:
    """Tickets of every kind that a file can hold."""
    if request.param == "composed":
        parts = [make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in range(2)]
        picked = Mask.from_indices(model, {"turned": torch.tensor([0, 17, 299])})
        return compose([*parts, make_ticket(model, picked)], "last")
    scope = "layers.*" if request.param == "magnitude" else "all"  # there is NaN elsewhere
    return make_ticket(model, Mask.from_rule(model, MaskRule(request.param, 0.08, seed=5, scope=scope)))
