"""A ticket of fp32 values on a base that is stored in bf16: its scores in both, and those of what is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from multiticket.cli import main
from multiticket.models import stored_dtype
from multiticket.ticket import Ticket
from multiticket.ticket.card import describe

EVAL = ["--problems", "10", "--samples", "2"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    return output.out


def training(base: Path, output: Path, steps: int, rollouts: int) -> list[str]:
    """The command's arguments."""
    settings = f"--task toy_task:TASK --density 0.1 --steps {steps} --rollouts {rollouts} --group 8"
    command = ["train", "--model", str(base), *settings.split(), "--learning-rate", "0.03"]
    return [*command, *EVAL, "--output", str(output)]


@pytest.fixture(scope="module")
def base(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "base"
    AutoModelForCausalLM.from_pretrained(toy_model_folder, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_model_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("half") / "run"
    with pytest.raises(SystemExit) as end:
        main(training(base, output, steps=3, rollouts=32))
    assert end.value.code == 0
    return output


def scores(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("pass@1", "interval", "greedy", "reward", "n")}


def test_the_dtype_of_a_checkpoint(base: Path, toy_model_folder: Path, tmp_path: Path) -> None:
    assert stored_dtype(str(base)) == "bfloat16"
    assert stored_dtype(str(toy_model_folder)) == "float32"
    assert stored_dtype("tiny-qwen2") == "bfloat16"
    assert stored_dtype(str(tmp_path)) is None


def test_the_run_measures_what_is_merged(
    trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score in the result is the merged checkpoint's, and the ticket's in that dtype."""
    result = json.loads((trained / "result.json").read_text())
    shipped = result["eval"]["shipped"]
    assert shipped["dtype"] == "bfloat16"
    said = run(capsys, "merge", str(trained), "--output", str(tmp_path / "merged"))
    assert "Measured: pass@1" in " ".join(said.split())
    asked = ["--task", "toy_task:TASK", "--dtype", "bfloat16", *EVAL, "--json"]
    merged = json.loads(run(capsys, "eval", str(tmp_path / "merged"), *asked))
    applied = json.loads(run(capsys, "eval", str(trained), *asked))
    assert merged["dtype"] == applied["dtype"] == "bfloat16"
    assert scores(merged) == scores(applied) == scores(shipped)
    assert applied["results"].endswith("-bfloat16.jsonl")
    assert Path(applied["results"]).read_bytes() == (trained / "eval-shipped.jsonl").read_bytes()


def test_both_scores_are_in_the_ticket_and_on_its_card(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    ticket = Ticket.load(trained / "ticket.safetensors")
    assert ticket.provenance["scores"] == result["eval"]
    assert "| merged, in bfloat16 |" in describe(ticket, "me/ticket", "them/base", on_hub=True)


def test_a_ticket_is_measured_in_the_dtype_of_its_training(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = training(base, output, steps=1, rollouts=16)
    run(capsys, *arguments, "--dtype", "bfloat16", "--save-every", "1")
    result = json.loads((output / "result.json").read_text())
    assert "shipped" not in result["eval"]
    for subject in ([str(output)], ["--checkpoint", str(output / "checkpoints" / "step-1")]):
        told = json.loads(run(capsys, "eval", *subject, *EVAL, "--json"))
        assert told["dtype"] == "bfloat16"
        assert scores(told) == scores(result["eval"]["after"])
    wide = json.loads(run(capsys, "eval", "--checkpoint", subject[1], *EVAL, "--json", "--dtype", "float32"))
    assert wide["dtype"] == "float32"
