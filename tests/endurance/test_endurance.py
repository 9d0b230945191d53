"""The endurance scripts, with small counts; their own docstrings say how to run them whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("script", "count", "says"),
    [
        ("random_kills.py", 12, "12 kills, nothing lost"),
        ("mutated_tickets.py", 200, "200 mutated tickets, none of them taken for what it is not"),
    ],
)
def test_a_few(script: str, count: int, says: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / script), "--count", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout
