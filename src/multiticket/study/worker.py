"""``python -m multiticket.study.worker STUDY FOLDER``: one process that does a study's runs, one after the other."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from multiticket.study.grid import load
from multiticket.study.runner import work


def main() -> None:
    from multiticket.train.interrupt import RunInterrupted

    threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    study, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        work(folder, load(study).runs)
    except RunInterrupted as interrupted:
        sys.exit(interrupted.code)


def _stop_with_parent(parent: int) -> None:
    """Ask this process to stop, as its parent would have, when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
