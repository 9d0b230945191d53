"""Tests with a real vLLM, on whatever device it has; `make test-vllm` makes the environment for a CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving import Server

sys.path.append(str(Path(__file__).parent))

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    MULTITICKET_VLLM_CPU_WEIGHTS="keep",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    missing = importlib.util.find_spec("vllm") is None
    for item in here:
        item.add_marker(pytest.mark.vllm)
        if missing:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: make test-vllm"))


@pytest.fixture(scope="session")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three tickets of the shipped base, each of which makes it say other things."""
    from real_tickets import make_tickets

    return make_tickets(tmp_path_factory.mktemp("tickets"))


@pytest.fixture(scope="session")
def server(tickets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`multiticket serve` with two of the tickets; the third is loaded while it runs."""
    from serving import Server

    given = {name: tickets[name] for name in ("one", "two")}
    with Server("tiny-qwen2", given, tmp_path_factory.mktemp("server")) as running:
        yield running
