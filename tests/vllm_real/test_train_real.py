"""`multiticket train --rollouts-by vllm`, in TRL's two modes: the engine samples from the weights that are trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_tickets import BASE
from serving import VllmServer

from multiticket import bases


def train(output: Path, *options: str, arm: str = "ticket") -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "multiticket",
        "train",
        "--task",
        "arithmetic",
        "--model",
        BASE,
        "--arm",
        arm,
    ]
    command += [
        "--steps",
        "3",
        "--rollouts",
        "64",
        "--problems",
        "16",
        "--samples",
        "1",
        "--rollouts-by",
        "vllm",
    ]
    command += [*options, "--output", str(output)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
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


def test_server(tmp_path: Path) -> None:
    options = ["--dtype", "float32", "--logprobs-mode", "processed_logprobs"]
    with VllmServer(bases.resolve(BASE), tmp_path, options) as server:
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
