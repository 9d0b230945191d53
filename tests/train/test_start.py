"""Runs that go on from a ticket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import made, small

from multiticket import config
from multiticket.arms.prepared import as_prepared
from multiticket.arms.start import attach_start, settings_from_ticket
from multiticket.cli import main
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.sparse import attach
from multiticket.ticket import Ticket
from multiticket.ticket.compose import compose
from multiticket.train.run import run_training


@pytest.fixture(scope="module")
def first(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("first") / "run"
    return output / "ticket.safetensors", run_training(
        small(toy_model_folder, seed=3), output, show_progress=False
    )


def _going_on(ticket: Path, model: Path, **more: Any) -> config.RunConfig:
    asked = {"model": str(model), "task": "toy_task:TASK", "training_seed": 11, **more}
    settings = settings_from_ticket(str(ticket), asked)
    return small(model, **{name: value for name, value in settings.items() if name != "model"})


def test_it_starts_where_the_ticket_ended_and_ends_with_a_ticket_of_the_base(
    first: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    path, result = first
    output = tmp_path / "run"
    went_on = run_training(_going_on(path, toy_model_folder), output, show_progress=False)
    assert went_on["eval"]["before"] == result["eval"]["after"]
    assert went_on["eval"]["after"]["reward"] > went_on["eval"]["before"]["reward"]
    before, after = Ticket.load(path), Ticket.load(output / "ticket.safetensors")
    assert after.fingerprint == before.fingerprint
    assert after.mask.rule == before.mask.rule
    base, _ = load_model(str(toy_model_folder))
    after.check(base)
    moved = [
        not torch.equal(after.sections[0].values[name], before.sections[0].values[name])
        for name in after.mask.names
    ]
    assert all(moved)


def test_it_resumes_to_the_same_bits(
    first: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    settings, output = _going_on(first[0], toy_model_folder), tmp_path / "run"
    run_training(settings, output, show_progress=False)
    expected = made(output)
    (output / "result.json").unlink()
    (output / "ticket.safetensors").unlink()
    shutil.rmtree(output / "checkpoints" / "step-7")
    run_training(settings, output, resume=True, show_progress=False)
    assert made(output) == {**expected, "checkpoints": made(output)["checkpoints"]}


def test_a_mask_that_follows_no_rule_goes_on_too(toy_model_folder: Path, tmp_path: Path) -> None:
    model, _ = load_model(str(toy_model_folder))
    shapes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    mask = Mask.from_indices(model, {name: torch.arange(0, numel, 7) for name, numel in shapes.items()})
    attach(model, mask).ticket().save(tmp_path / "t.safetensors")
    settings = _going_on(tmp_path / "t.safetensors", toy_model_folder, steps=1, eval_every=None)
    result = run_training(settings, tmp_path / "run", show_progress=False)
    assert result["nnz"] == mask.nnz
    assert not Ticket.load(tmp_path / "run" / "ticket.safetensors").mask.follows_rule


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"density": 0.2}, "trains with density 0.1, not 0.2"),
        ({"seed": 4}, "trains with seed 3, not 4"),
        ({"method": "columns"}, "trains with method 'random'"),
        ({"part": 1}, "trains with part 0, not 1"),
        ({"arm": "full"}, "use arm 'ticket', or merge"),
    ],
)
def test_another_mask_is_refused(
    asked: dict[str, Any],
    says: str,
    first: tuple[Path, dict[str, Any]],
    toy_model_folder: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=says):
        config.build(
            {**settings_from_ticket(str(first[0]), asked)} | ({"density": None} if "arm" in asked else {})
        )
    settings = small(toy_model_folder, from_ticket=str(first[0]))  # of seed 0
    with pytest.raises(ValueError, match="trains with seed 3, not 0"):
        run_training(settings, tmp_path / "run", show_progress=False)
    assert not list(tmp_path.iterdir())


def test_another_base_and_other_files_are_refused(
    first: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    model, _ = load_model(str(toy_model_folder))
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another base"):
        attach_start(model, _going_on(first[0], toy_model_folder))
    with pytest.raises(ValueError, match="There is no ticket"):
        settings_from_ticket(str(tmp_path / "missing.safetensors"), {})
    (tmp_path / "broken.safetensors").write_bytes(first[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be used"):
        settings_from_ticket(str(tmp_path / "broken.safetensors"), {})
    ticket = Ticket.load(first[0])
    compose([ticket, ticket], "last").save(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="composed of 2 tickets"):
        settings_from_ticket(str(tmp_path / "two.safetensors"), {})


def test_the_reference_may_be_the_base_or_the_start(
    first: tuple[Path, dict[str, Any]], toy_model_folder: Path
) -> None:
    base, _ = load_model(str(toy_model_folder))
    model, _ = load_model(str(toy_model_folder))
    attachment = attach_start(model, _going_on(first[0], toy_model_folder))
    start = as_prepared(model, attachment).reference("start")
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    ids = torch.arange(2, 12).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        trained = model(ids).logits
    with attachment.disabled():
        of_the_base = model(ids).logits
    with start():
        of_the_start = model(ids).logits
    assert not of_the_start.requires_grad
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trained)
        assert torch.equal(base(ids).logits, of_the_base)
        with Ticket.load(first[0]).applied(base):
            assert torch.equal(base(ids).logits, of_the_start)
    assert not torch.equal(of_the_start, trained)


def test_the_command_takes_model_task_and_mask_from_the_ticket(
    first: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = ["train", "--from-ticket", str(first[0]), "--steps", "1", "--rollouts", "32", "--group", "4"]
    arguments += ["--problems", "5", "--samples", "2", "--learning-rate", "1e-2", "--output", str(output)]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0, capsys.readouterr().err
    settings = json.loads((output / "config.json").read_text())
    assert (settings["seed"], settings["density"], settings["task"]) == (3, 0.1, "toy_task:TASK")
    assert settings["from_ticket"] == str(first[0])
    with pytest.raises(SystemExit) as stop:
        main([*arguments[:-1], str(tmp_path / "other"), "--density", "0.3"])
    assert stop.value.code == 2
    assert "trains with density 0.1, not 0.3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
