"""Other libraries' errors in whole sentences."""

from __future__ import annotations

import pytest

from multiticket.errors import first_sentence, why_not_loaded


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One"),
        ("See https://a.example/b.html for more. Two", "See https://a.example/b.html for more"),
        ("no stop\n at all", "no stop at all"),
        ("x" * 500 + ". y", "x" * 500),
        ("", "OSError"),
    ],
)
def test_a_sentence_is_whole_and_without_its_stop(text: str, sentence: str) -> None:
    assert first_sentence(OSError(text)) == sentence


def test_a_silent_hub_is_told_from_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    away = OSError("We couldn't connect to 'https://hub.example' to load the files. Check your connection.")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert why_not_loaded(away).endswith("HF_HUB_OFFLINE keeps this process offline")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert why_not_loaded(away).endswith("the hub cannot be reached")
    assert why_not_loaded(KeyError("no such type")) == "the reason given was: 'no such type'"
