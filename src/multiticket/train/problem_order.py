"""In which order problems come, so that a resumed run finds its place again."""

from __future__ import annotations

from multiticket.train.trl_compat import RepeatSampler


class EpochSampler(RepeatSampler):
    """A RepeatSampler whose permutation depends on seed and epoch, not on how many came before."""

    def set_epoch(self, epoch: int) -> None:
        assert self.seed is not None
        self.generator.manual_seed(self.seed + 1_000_003 * epoch)
