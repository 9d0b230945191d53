"""A run's checkpoints: which there are, which are whole, and which are worth keeping."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class Checkpoints:
    """The folders ``step-N`` below `path`. One that is being written, or deleted, is called ``partial-...``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, ascending."""
        names = (folder.name.removeprefix("step-") for folder in self.path.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def of(self, step: int) -> Path:
        return self.path / f"step-{step}"

    def last(self, before: int | None = None) -> int | None:
        """The newest step that has one, if need be the newest one below `before`."""
        steps = [step for step in self.steps() if before is None or step < before]
        return steps[-1] if steps else None

    def partial(self, step: int) -> Path:
        """The folder in which to write the checkpoint of `step`, until `finish`."""
        return self.path / f"partial-{step}"

    def finish(self, step: int, written: Path) -> None:
        """Give a written checkpoint its name, once it is on the disk."""
        for file in written.rglob("*"):
            _sync(file)
        _sync(written)
        if self.of(step).exists():
            self.delete(step)
        os.replace(written, self.of(step))
        _sync(self.path)
        self.give_up(step)

    def give_up(self, step: int) -> None:
        """Delete what was written of a checkpoint that is not to be finished."""
        shutil.rmtree(self.partial(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        """Rename first, so that no half of one is taken for a checkpoint."""
        condemned = self.path / f"partial-deleted-{step}"
        os.replace(self.of(step), condemned)
        shutil.rmtree(condemned)

    def remove_partial(self) -> None:
        """Delete what a run that was killed while it saved or deleted left behind."""
        for path in self.path.glob("partial-*"):
            shutil.rmtree(path)

    def prune(self, keep_last: int, best: int | None = None, suspect_since: int | None = None) -> None:
        """Delete all but the newest `keep_last`, the `best`, and the newest from before anything looked suspect."""
        kept = {*self.steps()[-keep_last:], best}
        if suspect_since is not None:
            kept.add(self.last(before=suspect_since))
        for step in self.steps():
            if step not in kept:
                self.delete(step)


def _sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk, so that a power cut leaves no renamed but empty checkpoint."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
