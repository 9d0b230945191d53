"""What a model is called in what a run leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


CACHED = """
import shutil, sys
from pathlib import Path
from multiticket import bases
from multiticket.cli.tickets import _base_of
from multiticket.mask import Mask
from multiticket.models import load_model, name_and_revision
from multiticket.sparse import attach

model, _ = load_model("acme/toy")
told, revision = name_and_revision("acme/toy", model)
ticket = attach(model, Mask.random(model, 0.01)).ticket(model=told, revision=revision)
cache = Path(sys.argv[1]) / "models--acme--toy"
(cache / "refs" / "main").write_text("f" * 40)  # the name means another commit now
model, _ = load_model(told, revision=revision)
ticket.check(model)
print(told, revision, _base_of(ticket, None) is not None)
"""


def test_the_commit_of_a_model_in_the_cache_is_kept_and_found_again(tmp_path: Path) -> None:
    """As the hub's library lays its cache out; nothing is mocked."""
    cache = tmp_path / "models--acme--toy"
    shutil.copytree(bases.resolve("tiny-qwen2"), cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CACHED, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["acme/toy", COMMIT, "True"]
