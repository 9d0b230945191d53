"""Actors of verl, each in processes of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("verl") is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs verl: make test-verl"))


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verl")


@pytest.fixture(scope="session")
def act(out: Path) -> Callable[..., Path]:
    """``act(result, base, ranks=1, **settings)`` runs actor.py; what it wrote begins with the path returned."""

    def run(result: str, base: str, ranks: int = 1, **settings: Any) -> Path:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(SOURCES), str(HERE))),
            "HF_HUB_OFFLINE": "1",
            "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
        }
        path = SOURCES / "multiticket" / "bases" / base
        command = [sys.executable, HERE / "actor.py", out, result, path, json.dumps(settings)]
        logs = [(out / f"{result}-{rank}.log").open("w") for rank in range(ranks)]
        processes = [
            subprocess.Popen(
                command,
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        codes = [process.wait(timeout=600) for process in processes]
        said = "".join((out / f"{result}-{rank}.log").read_text() for rank in range(ranks))
        assert codes == [0] * ranks, said[-3000:]
        return out / result

    return run
