"""``multiticket train`` and ``eval`` as a person types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multiticket.cli import main

SMALL = ["--task", "toy_task:TASK", "--rollouts", "64", "--group", "8", "--problems", "10", "--samples", "2"]


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which a command is refused; nothing is printed beside it."""
    code, out, err = _run(arguments, capsys)
    said = [line for line in err.splitlines() if "it/s]" not in line]
    assert (code, out) == (2, "")
    assert len(said) == 1, err
    assert said[0].startswith("multiticket: ")
    assert said[0].endswith(".")
    return said[0]


@pytest.fixture(scope="module")
def trained(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cli") / "run"
    arguments = ["train", "--model", str(toy_model_folder), "--density", "0.1", "--learning-rate", "0.05"]
    arguments += ["--steps", "4", "--save-every", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *SMALL, "--output", str(output), "--json"])
    assert stop.value.code == 0
    return output


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "--densty", "0.1"], ["trian"]]
)
def test_help_and_typing_errors_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom multiticket.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n"
        "    heavy = {'torch', 'trl', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    if "--help" not in arguments:
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "no_such_task"], "Unknown task 'no_such_task'"),
        (["--model", "./no/such/folder"], "There is no folder"),
        (["--arm", "half"], "arm should be 'full', 'ticket', 'lora' or 'shira', but is 'half'"),
        (["--density", "0"], "density should be greater than 0"),
        (["--density", "1.5"], "density should be less than or equal to 1"),
        (["--density", "nan"], "density "),
        (["--density", "1e-6", "--learning-rate", "1"], "empty"),
        (["--method", "no_such_method"], "mask by method 'no_such_method'"),
        (["--config", "no/such/file.yaml"], "Cannot read the settings"),
        (["--steps", "many"], "--steps"),
        (["--learning-rate", "fast"], "takes a number or auto, not 'fast'"),
        (["--learning-rate", "-1"], "learning_rate should be greater than 0"),
        (["--mask-options", "layers"], "takes 'name: value' pairs"),
        (["--method", "layers", "--mask-options", "layers: 9"], "Option layers must be"),
        (["--dtype", "float8"], "dtype should be"),
        (["--resume"], "holds no run to resume"),
        (["--set", "vllm_mod=server"], "GRPOConfig has no option 'vllm_mod'; the nearest are vllm_mode"),
        (["--set", "learning_rate=1"], "by the run: give --learning-rate."),
        (["--set", "top_p"], "options as name=value"),
        (["--set", "use_vllm=true"], "pip install 'trl[vllm]'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments: list[str],
    says: str,
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["train", "--task", "toy_task:TASK", "--model", str(toy_model_folder), "--output", "run"]
    assert says in _refused([*start, *arguments], capsys)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_left_alone(
    trained: Path, toy_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    sentence = _refused(["train", "--model", str(toy_model_folder), "--output", str(trained), *SMALL], capsys)
    assert "already holds a run" in sentence
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_resuming_with_other_settings_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--resume", "--output", str(trained), "--density", "0.2"]
    assert "was started with density 0.1, not 0.2" in _refused(arguments, capsys)


def test_resuming_with_more_steps_goes_on(
    toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "run")
    start = ["train", "--model", str(toy_model_folder), "--density", "0.1", *SMALL, "--save-every", "1"]
    assert _run([*start, "--steps", "2", "--output", output], capsys)[0] == 0
    whole = str(tmp_path / "whole")
    assert _run([*start, "--steps", "3", "--output", whole], capsys)[0] == 0
    assert _run(["train", "--resume", "--steps", "3", "--output", output], capsys)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    ours, theirs = (json.loads((Path(folder) / "result.json").read_text()) for folder in (output, whole))
    assert ours["eval"] == theirs["eval"]
    assert ours["steps"] == 3


def test_eval_of_ticket_base_and_checkpoint(
    trained: Path, toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained / "result.json").read_text())
    measured: dict[str, dict[str, Any]] = {}
    small = ["--problems", "10", "--samples", "2", "--json"]
    subjects = {
        "before": [str(toy_model_folder), "--task", "toy_task:TASK"],
        "after": ["--ticket", str(trained / "ticket.safetensors")],
        "checkpoint": ["--checkpoint", str(trained / "checkpoints" / "step-4")],
        "earlier": ["--checkpoint", str(trained / "checkpoints" / "step-2")],
    }
    for name, arguments in subjects.items():
        code, out, _ = _run(["eval", *arguments, *small, "--output", str(tmp_path / f"{name}.jsonl")], capsys)
        assert code == 0
        measured[name] = json.loads(out)
    scores = result["eval"]["after"].keys()
    assert {key: measured["before"][key] for key in scores} == result["eval"]["before"]
    assert {key: measured["after"][key] for key in scores} == result["eval"]["after"]
    assert {key: measured["checkpoint"][key] for key in scores} == result["eval"]["after"]
    assert measured["after"]["model"] == str(toy_model_folder)
    assert (tmp_path / "after.jsonl").read_bytes() == (trained / "eval-after.jsonl").read_bytes()
    assert (tmp_path / "earlier.jsonl").read_bytes() != (trained / "eval-after.jsonl").read_bytes()
    assert not (trained / "evals").exists()


def test_results_of_a_run_are_kept_beside_it(
    trained: Path, toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    small = ["--problems", "10", "--samples", "2"]
    code, out, _ = _run(["eval", "--ticket", str(run / "ticket.safetensors"), *small, "--json"], capsys)
    kept = run / "evals" / "ticket-copy_letter-test-10x2-t1-seed0.jsonl"
    assert code == 0
    assert json.loads(out)["results"] == str(kept)
    assert kept.read_bytes() == (run / "eval-after.jsonl").read_bytes()
    code, out, _ = _run(
        ["eval", "--checkpoint", str(run / "checkpoints" / "step-2"), *small, "--seed", "3"], capsys
    )
    assert code == 0
    names = {path.name for path in kept.parent.iterdir()}
    assert names == {kept.name, "step-2-copy_letter-test-10x2-t1-seed3.jsonl"}
    assert "step-2-copy_letter" in out
    code, out, _ = _run(["compare", str(run), str(kept), "--json"], capsys)
    assert code == 0
    assert json.loads(out)["pass@1"]["difference"] == 0


def test_eval_of_an_adapter(
    toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the same adapter merged into a plain checkpoint."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(toy_model_folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(10)  # on this model a small adapter changes no completion
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(toy_model_folder).save_pretrained(tmp_path / "merged")
    shared = ["--task", "toy_task:TASK", "--problems", "20", "--samples", "2", "--json", "--output"]
    measured = []
    for name, subject in (("adapter", ["--adapter", "adapter"]), ("merged", ["merged"]), ("base", [])):
        folders = [str(tmp_path / word) if word in ("adapter", "merged") else word for word in subject]
        folders = folders or [str(toy_model_folder)]
        code, out, _ = _run(["eval", *folders, *shared, str(tmp_path / f"{name}.jsonl")], capsys)
        assert code == 0
        measured.append(json.loads(out))
    assert measured[0]["model"] == str(toy_model_folder)
    assert measured[0]["reward"] == measured[1]["reward"] != measured[2]["reward"]
    assert (tmp_path / "adapter.jsonl").read_bytes() == (tmp_path / "merged.jsonl").read_bytes()

    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "away")
    for folder in (tmp_path / "adapter", tmp_path / "merged", tmp_path / "nowhere"):
        assert "is not a PEFT adapter" in _refused(["eval", "--adapter", str(folder)], capsys)


def test_eval_refuses_what_does_not_fit(
    trained: Path, toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ticket = trained / "ticket.safetensors"
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(toy_model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(toy_model_folder).save_pretrained(other)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(ticket.read_bytes()[:-50])
    results = tmp_path / "results.jsonl"
    for arguments in (
        [str(other), "--ticket", str(ticket)],
        ["--ticket", str(truncated)],
        ["--ticket", str(tmp_path / "missing.safetensors")],
        ["--checkpoint", str(tmp_path)],
        ["--ticket", str(ticket), "--checkpoint", str(trained / "checkpoints" / "step-2")],
        ["--ticket", str(ticket), "--adapter", str(tmp_path)],
        [str(toy_model_folder), "--split", "dev"],
        [str(toy_model_folder), "--task", "no_such_task"],
    ):
        _refused(["eval", *arguments, "--output", str(results)], capsys)
        assert not results.exists()


def test_a_run_says_little_but_how_far_it_is(toy_model_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing of TRL's or transformers' talk on either stream, and one JSON document."""
    arguments = ["train", "--model", str(toy_model_folder), "--density", "0.1", "--steps", "2", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "support")}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from multiticket.cli import main; main()",
            *arguments,
            "--json",
            "--output",
            "run",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout)["steps"] == 2
    assert done.stderr
    assert all(line.startswith("run: ") for line in done.stderr.splitlines()), done.stderr
