"""From training to a file and back: what an attachment learned is what its ticket applies."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ticket_models import bits, same_bits

from multiticket import bases
from multiticket.cli import main
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


COMMITS = ["a" * 40, "b" * 40]


@pytest.mark.parametrize(
    ("place", "commit", "cached", "told"),
    [
        (str(bases.path("tiny-qwen2")), None, [], {"model": "tiny-qwen2"}),
        ("acme/toy", COMMITS[0], [], {"model": "acme/toy", "revision": COMMITS[0]}),
        ("acme/toy", None, COMMITS[:1], {"model": "acme/toy", "revision": COMMITS[0]}),
        ("acme/toy", None, COMMITS, {"model": "acme/toy"}),
        ("acme/toy", None, [], {}),
        (
            f"/hub/models--acme--toy/snapshots/{COMMITS[1]}",
            None,
            [],
            {"model": "acme/toy", "revision": COMMITS[1]},
        ),
        ("/home/someone/model", None, [], {}),
        ("/home/someone/model", COMMITS[0], [], {}),
        ("./model", None, [], {}),
        ("", None, [], {}),
        (None, None, [], {}),
    ],
)
def test_a_base_that_others_can_get_is_named_and_no_path_of_this_machine(
    place: str | None,
    commit: str | None,
    cached: list[str],
    told: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for one in cached:
        (tmp_path / "models--acme--toy" / "snapshots" / one).mkdir(parents=True)
    model = Small()
    model.config = SimpleNamespace(_name_or_path=place, _commit_hash=commit)  # type: ignore[assignment]
    attachment = attach(model, Mask.random(model, 0.2))

    def found(**given: str) -> dict[str, str]:
        provenance = attachment.ticket(**given).provenance
        return {name: provenance[name] for name in ("model", "revision") if name in provenance}

    assert found() == found(task="toy") == told
    assert found(model="mine") == {"model": "mine"}
    assert found(revision="v1") == {"revision": "v1"}
    (tmp_path / "acme" / "toy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if place == "acme/toy":
        assert found() == {}  # a folder of this name was loaded


def test_a_ticket_of_a_shipped_base_finds_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = bases.load("tiny-qwen2")
    attach(model, Mask.random(model, 0.001)).ticket().save(tmp_path / "t.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["merge", str(tmp_path / "t.safetensors"), "--output", str(tmp_path / "merged")])
    assert end.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "merged" / "config.json").is_file()
