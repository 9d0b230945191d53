"""Whole runs by two processes under FSDP2: as one process would, again bit for bit, and stopped together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs_of_two import RunsOfTwo
from safetensors.torch import load_file
from small_runs import apart, kept_tensors, metrics, small
from tiny_caller import save_tiny_caller
from told_rollouts import given, told
from toy_tools import doors
from two_processes import in_two_processes, of_both

from multiticket.config import build
from multiticket.runs.ranks import Ranks
from multiticket.train import strategy
from multiticket.train.run import run_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(toy_model_folder, folder / "base")
    save_tiny_caller(folder / "caller")
    doors(folder)
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return in_two_processes("many_sharded_worker.py", folder)


def test_a_run_repeats_itself_bit_for_bit(both: Any) -> None:
    first, second = of_both(both, "whole")
    assert first == second
    assert (first["result"]["processes"], first["result"]["strategy"]) == (2, "fsdp2")
    assert of_both(both, "again")[0]["made"] == first["made"]


@pytest.mark.parametrize(("case", "left"), [("signal", 2), ("no room", 2)])
def test_what_stops_one_stops_all_and_the_run_goes_on(both: Any, case: str, left: int) -> None:
    first, second = of_both(both, case)
    assert first["left"] == left
    assert first["raised"] == second["raised"] == {"signal": "RunInterrupted", "no room": "ValueError"}[case]
    expected = of_both(both, "whole")[0]["made"]
    assert first["made"] == second["made"] == expected


def test_weights_are_gathered_once_to_generate(both: Any) -> None:
    """Passes gather layer by layer; generation gathers nothing more, whatever the completions' lengths."""
    for figures in of_both(both, "counted"):
        assert [name for name, _, _ in figures["seen"]] == ["sample", "loss"] * 2
        for name, sharded, gathers in figures["seen"]:
            assert sharded
            assert (gathers > 0) == (name == "loss")


class TestWhatOneProcessDoes(RunsOfTwo):
    path = "direct"


def test_other_arms_keep_what_they_trained(both: Any, folder: Path) -> None:
    for arm in ("full", "lora"):
        first, second = of_both(both, arm)
        assert first == second
    full, base = kept_tensors(folder / "full"), load_file(folder / "base" / "model.safetensors")
    assert all((full[name] != base[name]).any() for name in base)
    adapter = kept_tensors(folder / "lora")
    assert all(tensor.any() for tensor in adapter.values())


@pytest.mark.parametrize("arm", ["ticket", "full", "lora"])
def test_two_processes_learn_what_one_does(both: Any, folder: Path, arm: str, tmp_path: Path) -> None:
    of_both(both, f"given {arm}")
    two, one = folder / f"given-{arm}-sgd", tmp_path / "one"
    with told(0):
        run_training(small(folder / "base", **given(arm, "sgd")), one, show_progress=False)
    assert apart(two, one) < 1e-6
    for line, other in zip(metrics(two), metrics(one), strict=True):
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-6 if line["step"] == 1 else 1e-4)


TWO = Ranks(0, 2, None)


@pytest.mark.parametrize(
    ("environment", "settings", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "leaves out on CPUs"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "not shared by DeepSpeed"),
    ],
)
def test_what_accelerate_is_set_to_and_a_run_does_not_do_is_refused(
    environment: dict[str, str], settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        strategy.strategy_of(TWO, build(settings), lambda note: None)


def test_a_whole_copy_beside_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "_of_accelerate", lambda: strategy.FSDP2)
    for settings in ({"arm": "full"}, {"arm": "ticket", "beta": 0.1}):
        assert strategy.strategy_of(TWO, build(settings), lambda note: None) == "fsdp2"
    with pytest.raises(ValueError, match="keeps a copy of all weights"):
        strategy.strategy_of(TWO, build({"arm": "full", "beta": 0.1}), lambda note: None)


def test_precision_is_the_runs_own_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "_of_accelerate", lambda: strategy.DDP)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    notes: list[str] = []
    strategy.strategy_of(TWO, build({}), notes.append)
    (note,) = notes
    assert "mixed precision (bf16) is left out" in note
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
