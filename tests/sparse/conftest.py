"""The tests of what training does run on both paths, as if ``attach`` had chosen each."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["direct", "hooks"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path that ``attach`` takes by itself."""
    monkeypatch.setattr("multiticket.sparse.choose_path._hooks_fit", lambda *_: request.param == "hooks")
    return request.param
