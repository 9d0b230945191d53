"""From training to a file and back: what an attachment learned is what its ticket applies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ticket_models import bits, same_bits

from multiticket.mask import Mask
from multiticket.sparse import attach
from multiticket.ticket import Ticket


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 16)
        self.up = torch.nn.Linear(16, 24)
        self.lm_head = torch.nn.Linear(24, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.up(self.embed(tokens))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_attached_and_applying_the_file_give_the_same_weights(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Small().to(dtype)
    base = bits(model)
    attachment = attach(model, Mask.random(model, 0.2))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    for _ in range(5):
        loss = model(torch.arange(20)).float().logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    attachment.ticket(task="toy").save(tmp_path / "t")
    ticket = Ticket.load(tmp_path / "t")
    assert ticket.provenance["task"] == "toy"
    assert ticket.provenance["versions"]["torch"] == torch.__version__
    assert ticket.fingerprint == attachment.base_fingerprint
    assert ticket.dtypes == (dtype,)
    with pytest.raises(ValueError, match=r"has an attachment; call its detach\(\)"):
        ticket.apply(model)
    trained = copy.deepcopy(model)
    attachment.detach(keep=False)
    assert same_bits(bits(model), base)
    with ticket.applied(model):
        found = dict(model.named_parameters())
        for name, weight in trained.named_parameters():
            if not name.endswith("__values"):
                assert torch.equal(found[name], weight)
        assert not same_bits(bits(model), base)
    assert same_bits(bits(model), base)
