"""A study's runs as tasks of a Ray cluster.

A run whose worker dies is started again by Ray, up to `RETRIES` times, and goes on from its newest checkpoint: the lock
of the dead is free, and its folder is where it was. A run whose rate is chosen by a sweep starts when the sweep's tasks
have ended.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

from multiticket.quiet import hush
from multiticket.research.study.executors import RETRIES, Alive, Stop
from multiticket.research.study.grid import Study
from multiticket.research.study.runner import perform, to_come
from multiticket.research.study.study_run import StudyRun

PATIENCE = 300.0
"""Seconds for runs to finish their step and save it when they are told to stop."""


def start_ray(
    study: Study, folder: Path, cpus: float, gpus: float, address: str | None
) -> tuple[Stop, Alive]:
    """Give every run to Ray as a task that needs ``cpus`` and ``gpus``; ``folder`` must be one that all nodes see.

    Returns:
        what stops the runs, each with a checkpoint of the step that it is in, and what says whether any is under way.

    Raises:
        ValueError: Ray is not installed, no cluster answers at `address`, or it has not what one run needs.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("The Ray executor needs Ray: pip install 'multiticket[ray]'.") from None
    if address is not None:
        _require_answer(address)
    ours = not ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        raise ValueError(_no_answer(address)) from None
    _require(ray.nodes(), cpus, gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_perform_after)
    folder = folder.resolve()
    pending: list[Any] = []

    def submit(runs: list[StudyRun]) -> None:
        references: dict[str, Any] = {}
        for run in runs:
            sweep = run.choice.sweep if run.choice else ()
            first = [references[one.name] for one in sweep if one.name in references]
            references[run.name] = task.remote(folder, run, *first)
        pending[:] = references.values()

    def stop() -> None:
        for reference in pending:
            ray.cancel(reference)
        ray.wait(pending, num_returns=len(pending), timeout=PATIENCE)
        if ours:
            ray.shutdown()

    tries = 0

    def alive() -> bool:
        nonlocal tries
        if ray.wait(pending, num_returns=len(pending), timeout=0)[1]:
            return True
        left = to_come(folder, study.runs)
        if not left or tries == RETRIES:
            return False
        tries += 1  # another study process had a sweep's runs, or Ray gave one up
        submit(left)
        return True

    submit(list(study.runs))
    return stop, alive


def _perform_after(folder: Path, run: StudyRun, *sweep: Any) -> bool:
    """:func:`perform`, when the tasks of `sweep` have ended, however they did."""
    hush()
    return perform(folder, run)


def _require_answer(address: str) -> None:
    """Raises ValueError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # such as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError):
        raise ValueError(_no_answer(address)) from None


def _no_answer(address: str | None) -> str:
    return f"No Ray cluster answers at {address}: start one, or omit --address."


def _require(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> None:
    """Raises ValueError where no run would ever start."""
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(offer.get("CPU", 0) >= cpus and offer.get("GPU", 0) >= gpus for offer in offers):
        largest = max(((offer.get("CPU", 0), offer.get("GPU", 0)) for offer in offers), default=(0, 0))
        raise ValueError(
            f"No node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs for a run (the largest has {largest[0]:g} "
            f"and {largest[1]:g}): lower --cpus or --gpus."
        )
