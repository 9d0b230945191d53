"""RLVRTrainer on two ranks ends where one process does, and resumes to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from two_ranks import SECONDS, of_case, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    script = Path(__file__).parent / "trainer_worker.py"
    subprocess.run([sys.executable, str(script), str(folder), "alone"], check=True, timeout=SECONDS)
    return run("trainer_worker.py", folder)


@pytest.mark.parametrize("case", ["ddp sgd", "ddp adamw", "fsdp2 sgd"])
def test_two_ranks_end_where_one_process_does(ranks, case):
    for figures in of_case(ranks, case):
        assert figures["moved"] > 1e-3
        assert figures["difference"] < 1e-6 * max(1.0, figures["moved"])
        assert len(figures["kl"]) == 4
        assert min(figures["kl"]) > 0


@pytest.mark.parametrize("case", ["ddp sgd", "ddp adamw", "fsdp2 sgd"])
def test_a_resumed_run_ends_at_the_same_bits(ranks, case):
    for figures in of_case(ranks, case):
        assert figures["resumed"] == 0
        assert "values.safetensors" in figures["files"]
        assert not [name for name in figures["files"] if name.startswith(("model", "pytorch_model"))]
