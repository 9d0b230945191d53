"""Whole runs by two processes: as one process would, again bit for bit, and stopped together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs_of_two import RunsOfTwo
from small_runs import apart, digest, made, metrics, small
from tiny_caller import save_tiny_caller
from told_rollouts import GIVEN, given, told
from toy_tools import doors
from two_processes import PATH, SECONDS, in_two_processes, of_both

from multiticket.train.run import run_training
from multiticket.train.strategy import check_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(toy_model_folder, folder / "base")
    save_tiny_caller(folder / "caller")
    doors(folder)
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return in_two_processes("many_worker.py", folder)


def test_all_processes_have_the_result(both: Any, folder: Path) -> None:
    first, second = of_both(both, "whole")
    assert first == second
    assert first["result"] == json.loads((folder / "whole" / "result.json").read_text())
    assert (first["result"]["processes"], first["result"]["strategy"]) == (2, "ddp")
    assert [line["step"] for line in metrics(folder / "whole")] == list(range(1, 8))


def test_a_run_repeats_itself_bit_for_bit(both: Any) -> None:
    assert of_both(both, "again")[0]["made"] == of_both(both, "whole")[0]["made"]


def test_the_base_scores_as_in_one_process(both: Any, folder: Path, tmp_path: Path) -> None:
    from toy_task import TASK

    from multiticket.evaluate.evaluation import evaluate
    from multiticket.models import load_model

    of_both(both, "whole")
    settings = small(folder / "base")
    evaluate(*load_model(str(folder / "base")), TASK, settings.eval).save(tmp_path / "one.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (folder / "whole" / "eval-before.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("case", "step"),
    [("signal while generating", 2), ("signal in a pass", 3), ("signal after a pass", 3)],
)
def test_a_signal_to_one_stops_all_and_the_run_goes_on(both: Any, case: str, step: int) -> None:
    first, second = of_both(both, case)
    assert first == second
    assert (first["raised"], first["left"]) == ("RunInterrupted", step)
    assert first["code"] == 128 + (signal.SIGINT if case == "signal in a pass" else signal.SIGTERM)
    expected = of_both(both, "whole" if case == "signal while generating" else "unsaved")[0]["made"]
    assert {**first["made"], "checkpoints": None} == {**expected, "checkpoints": None}


def test_a_signal_ends_a_measurement(both: Any) -> None:
    first, second = of_both(both, "signal while measuring")
    assert first == second
    assert (first["raised"], first["code"], first["left"]) == ("RunInterrupted", 143, None)
    assert first["made"] == of_both(both, "whole")[0]["made"]


@pytest.mark.parametrize(
    ("case", "left"), [("no room for a line", 3), ("no room for values", 2), ("no room for a state", 2)]
)
def test_a_full_disk_stops_all_in_words(both: Any, case: str, left: int | None) -> None:
    first, second = of_both(both, case)
    assert first["raised"] == "ValueError"
    assert "Cannot write the run" in first["says"]
    assert first["left"] == left
    assert first["made"] == second["made"] == of_both(both, "whole")[0]["made"]


def test_a_collapse_is_the_same_for_all(both: Any) -> None:
    first, second = of_both(both, "collapse")
    assert first == second
    assert first["result"]["stopped"]["step"] == 3


def test_what_one_cannot_judge_ends_all(both: Any) -> None:
    assert [figures["raised"] for figures in of_both(both, "score fails")] == [
        "OtherRankFailed",
        "ValueError",
    ]


class TestWhatOneProcessDoes(RunsOfTwo):
    path = "hooks"


def test_a_finished_run_is_told_and_goes_on_to_more_steps(both: Any) -> None:
    whole = of_both(both, "whole")[0]
    assert [figures["result"] for figures in of_both(both, "finished")] == [whole["result"]] * 2
    first, second = of_both(both, "more steps")
    assert first == second
    assert first["made"]["metrics"][:7] == whole["made"]["metrics"]


def test_a_run_goes_on_by_another_number_of_processes(
    both: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of_both(both, "unsaved")
    shutil.copytree(folder / "micro", tmp_path / "run")
    result = run_training(small(folder / "base", micro_batch=10, steps=5), tmp_path / "run", resume=True)
    assert (result["steps"], result["processes"]) == (5, 1)
    assert "begun by 2 processes, goes on by 1" in capfd.readouterr().err
    assert metrics(tmp_path / "run")[:3] == metrics(folder / "micro")


def test_a_checkpoint_that_these_processes_cannot_take_up_is_refused(tmp_path: Path) -> None:
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        (tmp_path / name).touch()
    assert check_checkpoint(tmp_path, 2, "fsdp2") is None
    with pytest.raises(ValueError, match="under FSDP2"):
        check_checkpoint(tmp_path, 2, "ddp")
    (tmp_path / "optimizer.pt").touch()
    assert check_checkpoint(tmp_path, 2, "ddp") is None
    with pytest.raises(ValueError, match="without FSDP2"):
        check_checkpoint(tmp_path, 2, "fsdp2")
    (tmp_path / "in-hand-0.pt").touch()
    with pytest.raises(ValueError, match="rollouts of 2 processes"):
        check_checkpoint(tmp_path, 1, None)


@pytest.mark.parametrize(("arm", "optim"), GIVEN)
def test_two_processes_learn_what_one_does(
    both: Any, folder: Path, arm: str, optim: str, tmp_path: Path
) -> None:
    """On the same rollouts: the values after seven steps, and what every step says of its gradient."""
    of_both(both, f"given {arm} {optim}")
    two, one = folder / f"given-{arm}-{optim}", tmp_path / "one"
    with told(0):
        run_training(small(folder / "base", **given(arm, optim)), one, show_progress=False)
    assert apart(two, one) < 1e-6
    for line, other in zip(metrics(two), metrics(one), strict=True):
        assert line["grad_norm"] > 1e-3
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-6 if line["step"] == 1 else 1e-4)
        for name in ("loss", "reward", "accuracy", "completion_length", "entropy"):
            assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name


def _launched(launcher: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *launcher, "-m", "multiticket", "train", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_the_command_runs_under_a_launcher(
    launcher: list[str], both: Any, folder: Path, tmp_path: Path
) -> None:
    """The same bits as without one; one process speaks."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(small(folder / "base").model_dump(mode="json")))
    done = _launched(launcher, ["--config", str(settings), "--output", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 7/7") == 1
    assert done.stdout.count("pass@1 after") == 1
    expected = of_both(both, "whole")[0]["made"]
    assert digest(made(tmp_path / "run")) == expected


def test_a_mistake_is_said_once(folder: Path, tmp_path: Path) -> None:
    """Also one that only the processes together make, and nothing is written."""
    arguments = [
        "--task",
        "toy_task:TASK",
        "--model",
        str(folder / "base"),
        "--rollouts",
        "9",
        "--group",
        "3",
    ]
    done = _launched(TORCHRUN, [*arguments, "--output", str(tmp_path / "run")])
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("multiticket: ")]
    assert len(said) == 1, done.stderr
    assert "9 rollouts per step do not divide into passes for 2 processes" in said[0]
    assert not (tmp_path / "run").exists()


def test_one_process_of_several_that_nobody_launched_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"MASTER_ADDR.*torchrun"):
        run_training(small(folder / "base"), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
