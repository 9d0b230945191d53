"""One process that does a study's runs, one after the other.

Started as ``python -m multiticket.research.study.study_worker STUDY FOLDER``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from multiticket.quiet import hush
from multiticket.research.study.grid import load
from multiticket.research.study.runner import work
from multiticket.research.study.study_run import StudyRun


def main() -> None:
    study, folder = Path(sys.argv[1]), Path(sys.argv[2])
    work_for(os.getppid(), folder, load(study).runs)


def work_for(parent: int, folder: Path, runs: Sequence[StudyRun]) -> None:
    """Do what is missing of `runs`; stop, with a checkpoint, when the process `parent` is gone."""
    from multiticket.train.callbacks.interrupt import RunInterrupted

    hush()
    threading.Thread(target=stop_with_parent, args=(parent,), daemon=True).start()
    try:
        work(folder, runs)
    except RunInterrupted as interrupted:
        sys.exit(interrupted.code)


def stop_with_parent(parent: int) -> None:
    """Ask this process to stop, as its parent would have, when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
