"""What holds of whole runs by two processes, however they share the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_runs import kept_tensors, metrics, small
from told_rollouts import given, told
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
        ours, theirs = kept_tensors(folder / "given-accelerator"), kept_tensors(tmp_path / "one")
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6

    def test_conversations_of_different_lengths_are_held_in_step(self, both: Any) -> None:
        """One process goes on when the other has nothing more to say."""
        first, second = of_both(both, "turns")
        assert first == second
        assert len(first["made"]["metrics"]) == 3

    def test_the_rate_is_found_together(self, both: Any, folder: Path) -> None:
        first, second = of_both(both, "auto")
        assert first == second
        kl = [line["kl_per_completion"] for line in metrics(folder / "auto")]
        assert 0.15 / 4 < sum(kl) / len(kl) < 0.15 * 4
