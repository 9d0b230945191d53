"""What a model is called in what a run leaves behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from multiticket import bases
from multiticket.models import load_model, name_and_revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tiny-qwen2", ("tiny-qwen2", None)),
        ("./somewhere/models--Qwen--Qwen2.5-0.5B/snapshots/" + COMMIT, ("Qwen/Qwen2.5-0.5B", COMMIT)),
        (f"/cache/models--gpt2/snapshots/{COMMIT}/", ("gpt2", COMMIT)),
        ("some-one/some-model", ("some-one/some-model", "a" * 40)),
    ],
)
def test_a_model_of_the_hub_is_named_by_its_name_and_commit(name: str, found: tuple[str, str | None]) -> None:
    model = SimpleNamespace(config=SimpleNamespace(_commit_hash="a" * 40))
    assert name_and_revision(name, model) == found


def test_a_folder_keeps_its_path(tmp_path: Path) -> None:
    assert name_and_revision(str(tmp_path), SimpleNamespace()) == (str(tmp_path), None)


def test_a_revision_is_looked_for_on_the_hub_alone() -> None:
    with pytest.raises(ValueError, match="it is not in the local cache"):
        load_model("no-one/no-model", revision=COMMIT)
    place = str(bases.path("tiny-qwen2"))
    assert load_model(place, revision=COMMIT)[0].num_parameters() > 0
