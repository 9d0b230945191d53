"""The Triton kernel under Triton's interpreter, on the CPU, against the plain reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from multiticket.sparse.crop import row_starts
from multiticket.sparse.gradient import linear_values_grad

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def test_the_kernel_gives_the_dense_gradient_at_the_positions():
    """Ragged shapes, tokens around the block, few positions and all, three dtypes, both index dtypes."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    worker = Path(__file__).with_name("triton_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["cases"]) == 74
    assert found["empty"] == [0]
    assert found["scatters"] == [True, True, True]
    for case in found["cases"]:
        assert case["dtype"] == "torch.float32", case
        assert case["error"] < 1e-5, case


def test_on_a_cpu_the_kernel_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    positions = torch.arange(3, dtype=torch.int32)
    with pytest.raises(ValueError, match="on the cpu, where Triton does not run"):
        linear_values_grad(
            torch.ones(2, 3), torch.ones(2, 3), positions, row_starts(positions, 3, 3), "triton"
        )
