"""Cases of a worker script in tests/train, which two gloo processes run together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
PATH = os.pathsep.join(
    [str(TESTS / "support"), str(TESTS / "sparse"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
"""Where the worker and its processes find what they import."""
SECONDS = 280
"""For one launch, of which a quiet machine uses about twenty."""
Both = dict[str, list[dict[str, Any]]]


def in_two_processes(script: str, folder: Path) -> Both:
    """What each process has of each case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS / "sparse")
        patch.setenv("PYTHONPATH", PATH)
        from two_ranks import run

        found = run(str(TESTS / "train" / script), folder)
    return {case: figures["both"] for case, figures in found.items()}


def of_both(both: Both, case: str) -> list[dict[str, Any]]:
    """What each process has of one case."""
    assert case in both, f"{case} did not run, a case before it failed"
    for figures in both[case]:
        assert figures is not None
        assert "error" not in figures, figures["error"]
    return both[case]
