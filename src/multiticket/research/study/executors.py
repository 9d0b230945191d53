"""Where a study's runs are done: processes of this machine, or a Ray cluster (`study/ray_cluster.py`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LOG = "workers.log"
RETRIES = 3
"""How often workers that were killed are replaced."""

Stop = Callable[[], None]
"""Ends the work: what is under way is told to stop, which it does with a checkpoint."""
Alive = Callable[[], bool]
"""Whether anybody works; to be asked every few seconds."""
Tell = Callable[[str], None]
"""Told in a sentence what a person should know."""


def start_local(study_file: Path, folder: Path, workers: int, tell: Tell) -> tuple[Stop, Alive]:
    """Start ``workers`` processes that share this machine's cores; what they print goes to ``workers.log``.

    One that is killed, as the system does where memory runs out, is replaced, up to `RETRIES` times in all.

    Returns:
        what stops them, and what says whether any is alive, and replaces those that were killed.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    command = [sys.executable, "-m", "multiticket.research.study.study_worker", str(study_file), str(folder)]
    folder.mkdir(parents=True, exist_ok=True)

    def start() -> subprocess.Popen[bytes]:
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on, once: a second one kills
            )

    processes = [start() for _ in range(workers)]
    tries = 0

    def stop() -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

    def alive() -> bool:
        nonlocal tries
        for process in [one for one in processes if one.poll() is not None]:
            processes.remove(process)
            if process.returncode >= 0:
                if process.returncode not in (0, *STOPPED):
                    tell(f"A worker ended with an error: see {folder / LOG}.")
                continue
            again = tries < RETRIES
            tell(_killed(-process.returncode, again))
            if again:
                tries += 1
                processes.append(start())
        return bool(processes)

    return stop, alive


STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""How a worker ends that was told to stop."""


def _killed(number: int, again: bool) -> str:
    names = {one.value: one.name for one in signal.Signals}
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    goes_on = "Another goes on from" if again else "The same command continues from"
    return f"A worker was killed by {names.get(number, number)}{why}. {goes_on} its last checkpoint."
