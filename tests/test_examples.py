"""The examples run as the README says, at a few steps, and leave a ticket that the base takes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import multiticket as mt

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTINGS = {
    "plain_loop": {"steps": 2, "problems": 2, "group": 4},
    "trl_grpo": {"steps": 2, "rollouts": 32},
}


@pytest.mark.parametrize("example", SETTINGS)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"]
    rewards = main(**SETTINGS[example], learning_rate=1e-2, output="ticket.safetensors")
    assert len(rewards) == SETTINGS[example]["steps"]
    assert all(0 <= reward <= 1 for reward in rewards)

    model, _ = mt.bases.load("tiny-qwen2", dtype=torch.float32)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with mt.Ticket.load("ticket.safetensors").applied(model):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])]
        assert changed
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
