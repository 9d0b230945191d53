from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multiticket.train import peak_memory
from multiticket.train.peak_memory import PeakMemory

MB = 1 << 20
on_linux = pytest.mark.skipif(
    not peak_memory.CLEAR.exists(), reason="the mark can be put back on Linux alone"
)


def hold(mb: int) -> None:
    torch.ones(mb * MB // 4)


@on_linux
def test_what_was_held_in_between_is_told_once_and_not_forgotten() -> None:
    peak = PeakMemory()
    peak.forget()
    begun = peak.most()
    hold(256)
    first = peak.take()
    hold(64)
    second = peak.take()
    assert first is not None
    assert second is not None
    assert begun + 200 * MB < first < begun + 400 * MB
    assert begun + 30 * MB < second < begun + 200 * MB
    assert peak.most() == first
    peak.forget()
    assert peak.most() < first - 100 * MB


def test_without_a_mark_to_put_back_the_whole_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peak_memory, "CLEAR", tmp_path / "none" / "such")
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "none" / "such")
    peak = PeakMemory()
    peak.forget()
    assert peak.take() is None
    assert peak.most() > 10 * MB
