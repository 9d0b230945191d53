"""The kernels that write and gather many weights at once, under Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux alone")

from multiticket.sparse.triton_kernels import Places

WORKER = Path(__file__).with_name("triton_worker.py")


def test_they_do_what_torchs_indexing_does():
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout)
    assert len(cases) == 7
    assert all(cases.values()), cases


def test_what_they_cannot_take_is_refused():
    at = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="contiguous"):
        Places([torch.ones(4, 3).t()], [at])
    with pytest.raises(ValueError, match="int32"):
        Places([torch.ones(4, 3)], [at.long()])
