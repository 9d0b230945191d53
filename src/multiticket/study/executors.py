"""Where a study's runs are done: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from multiticket.study.grid import Study
from multiticket.study.runner import perform

Wait = Callable[[], None]


def start_local(study_file: Path, folder: Path, workers: int) -> tuple[Wait, Callable[[], bool]]:
    """Start ``workers`` processes that share this machine's cores.

    Returns:
        what stops them, and what says whether any is alive.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    command = [sys.executable, "-m", "multiticket.study.worker", str(study_file), str(folder)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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


def start_ray(
    study: Study, folder: Path, cpus: float, gpus: float, address: str | None
) -> tuple[Wait, Callable[[], bool]]:
    """Give every run to Ray as a task that needs ``cpus`` and ``gpus``; ``folder`` must be one that all nodes see.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("The Ray executor needs Ray: pip install 'multiticket[ray]'.") from None
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(perform)
    pending = [task.remote(folder.resolve(), run) for run in study.runs]

    def stop() -> None:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.shutdown()

    def alive() -> bool:
        return bool(ray.wait(pending, num_returns=len(pending), timeout=0)[1])

    return stop, alive
