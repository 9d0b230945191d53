"""What holds of whole runs by two processes, however they share the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import apart, metrics, small
from told_rollouts import given, told, told_calls, with_tools
from two_processes import of_both

from multiticket.train.run import run_training


class RunsOfTwo:
    """Tests over the fixtures ``both``, each case's figures by process, and ``folder``, where the runs lie."""

    path: str
    """That `attach` is to choose."""

    def test_the_path_follows_from_what_accelerate_is_set_to(
        self, both: Any, folder: Path, tmp_path: Path
    ) -> None:
        assert [figures["paths"] for figures in of_both(both, "given accelerator")] == [[self.path]] * 2
        with told(0):
            run_training(
                small(folder / "base", **given("ticket", "sgd")), tmp_path / "one", show_progress=False
            )
        assert apart(folder / "given-accelerator", tmp_path / "one") < 1e-6

    def test_conversations_of_different_lengths_are_held_in_step(self, both: Any) -> None:
        """One process goes on when the other has nothing more to say."""
        first, second = of_both(both, "turns")
        assert first == second
        assert len(first["made"]["metrics"]) == 3

    def test_tools_are_called_by_both(self, both: Any) -> None:
        first, second = of_both(both, "tools")
        assert first == second
        lines = first["made"]["metrics"]
        assert len(lines) == 3
        assert sum(line["tool_calls"] for line in lines) > 0.5
        assert all(line["failures"] == 0 for line in lines)

    def test_with_tools_two_processes_learn_what_one_does(
        self, both: Any, folder: Path, tmp_path: Path
    ) -> None:
        first, second = of_both(both, "given tools")
        assert first == second
        with told_calls(0):
            run_training(
                small(folder / "caller", **with_tools(folder)), tmp_path / "one", show_progress=False
            )
        assert apart(folder / "given-tools", tmp_path / "one") < 1e-6
        for line, other in zip(metrics(folder / "given-tools"), metrics(tmp_path / "one"), strict=True):
            assert line["grad_norm"] > 1e-3
            assert line["reward"] > 0
            for name in ("reward", "tool_calls", "completion_length", "grad_norm", "loss"):
                assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name

    def test_the_rate_is_found_together(self, both: Any, folder: Path) -> None:
        first, second = of_both(both, "auto")
        assert first == second
        kl = [line["kl_per_completion"] for line in metrics(folder / "auto")]
        assert 0.15 / 4 < sum(kl) / len(kl) < 0.15 * 4
