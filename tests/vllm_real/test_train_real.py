"""`multiticket train --rollouts-by vllm`, in TRL's two modes: the engine samples from the weights that are trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import toy_tools
from real_tickets import BASE
from serving import VllmServer
from tiny_caller import save_tiny_caller

from multiticket import bases

SUPPORT = Path(__file__).parents[1] / "support"
SERVED = ["--dtype", "float32", "--logprobs-mode", "processed_logprobs"]
"""A server's options, for log-probabilities that are the trainer's."""


def train(
    output: Path, *options: str, arm: str = "ticket", task: str = "arithmetic", model: str = BASE
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "multiticket", "train", "--task", task, "--model", model, "--arm", arm]
    command += ["--steps", "3", "--rollouts", "64", "--problems", "16", "--samples", "1"]
    command += ["--rollouts-by", "vllm", *options, "--output", str(output)]
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def check(done: subprocess.CompletedProcess, output: Path) -> None:
    """The sampled log-probabilities are the trainer's at every step, so the weights were those of that step."""
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["sampling_difference"] < 1e-5
        assert line["sampling_difference_most"] < 1e-3
    assert "vllm" in json.loads((output / "result.json").read_text())["versions"]


@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_colocate(arm: str, tmp_path: Path) -> None:
    rate = ["--learning-rate", "0.01" if arm == "ticket" else "1e-4"]
    done = train(tmp_path / "run", *rate, "--set", "vllm_mode=colocate", arm=arm)
    check(done, tmp_path / "run")
    assert "Every dense tensor" not in done.stderr


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_tools_are_called_between_the_turns_that_vllm_generates(mode: str, tmp_path: Path) -> None:
    """In every turn the engine has the weights of the step; its log-probabilities are of the model's own tokens."""
    caller = save_tiny_caller(tmp_path / "caller", width=128)  # vLLM has no heads of 8
    task = f"toy_tools:by_environment@{toy_tools.doors(tmp_path)},environment=toy_tools:Door"
    options = ["--learning-rate", "0.01", "--density", "0.5", "--max-completion-tokens", "32"]
    options += ["--set", f"vllm_mode={mode}"]
    with ExitStack() as running:
        if mode == "server":
            server = running.enter_context(VllmServer(str(caller), tmp_path, SERVED))
            options += ["--set", f"vllm_server_base_url={server.url}"]
        done = train(tmp_path / "run", *options, task=task, model=str(caller))
    check(done, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["tool_calls"] for line in lines) > 0.5
    assert max(line["reward"] for line in lines) > 0
    assert all(line["failures"] == 0 for line in lines)


def test_server(tmp_path: Path) -> None:
    with VllmServer(bases.resolve(BASE), tmp_path, SERVED) as server:
        for name in ("first", "second"):  # the second run begins with the base again
            done = train(
                tmp_path / name,
                *("--learning-rate", "0.01", "--set", "vllm_mode=server"),
                *("--set", f"vllm_server_base_url={server.url}"),
            )
            check(done, tmp_path / name)
            assert "Every dense tensor" not in done.stderr
        first, second = (tmp_path / name / "metrics.jsonl" for name in ("first", "second"))
        assert first.exists()
        assert second.exists()
