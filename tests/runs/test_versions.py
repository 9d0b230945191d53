"""Versions are told as far as they are known, and never cost a run."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from typing import Any

import pytest

from multiticket.runs.versions import LIBRARIES, version_of, versions


def test_versions_are_those_that_are_installed() -> None:
    found = versions(["peft"])
    assert set(found) >= {"python", "peft", *LIBRARIES}
    assert found["torch"] == importlib.metadata.version("torch")


@pytest.mark.parametrize(
    "error", [importlib.metadata.PackageNotFoundError("x"), KeyError("Version"), OSError()]
)
def test_a_package_that_is_not_installed_is_no_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib.metadata, "version", fail)
    module = types.ModuleType("on_the_path")
    module.__version__ = "3.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "on_the_path", module)
    assert version_of("on_the_path") == "3.1"
    assert version_of("nowhere") == "unknown"
    assert {*versions()} >= {*LIBRARIES}
