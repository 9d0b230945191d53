"""Where a study's runs are done: processes of this machine, or a Ray cluster (`study/ray_cluster.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LOG = "workers.log"

Stop = Callable[[], None]
"""Ends the work: what is under way is told to stop, which it does with a checkpoint."""
Alive = Callable[[], bool]
"""Whether anybody works; to be asked every few seconds."""


def start_local(study_file: Path, folder: Path, workers: int) -> tuple[Stop, Alive]:
    """Start ``workers`` processes that share this machine's cores; what they print goes to ``workers.log``.

    Returns:
        what stops them, and what says whether any is alive.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    command = [sys.executable, "-m", "multiticket.research.study.study_worker", str(study_file), str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        processes = [
            subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on, once: a second one kills
            )
            for _ in range(workers)
        ]

    def stop() -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    def alive() -> bool:
        return any(process.poll() is None for process in processes)

    return stop, alive
