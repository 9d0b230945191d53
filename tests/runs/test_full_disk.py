"""Disks that take no more, really (a limit on file sizes, in a process of its own) and at chosen calls."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import in_a_child, made, small

from multiticket.config import RunConfig
from multiticket.runs.disk import explained
from multiticket.runs.folder import RunFolder
from multiticket.runs.lines import StepLines
from multiticket.train.run import run_training


@pytest.fixture(scope="module")
def expected(toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_training(small(toy_model_folder), output, show_progress=False)
    return made(output)


def _half_written(output: Path) -> list[Path]:
    return [*output.glob(".*"), *(output / "checkpoints").glob("partial-*")]


def _refused(settings: RunConfig, output: Path) -> str:
    with pytest.raises(ValueError, match="Cannot write the run") as refusal:
        run_training(settings, output, show_progress=False)
    assert not _half_written(output)
    lines = (output / "metrics.jsonl").read_bytes() if (output / "metrics.jsonl").exists() else b""
    assert lines == b"" or lines.endswith(b"\n")
    return str(refusal.value)


@pytest.mark.parametrize("limit", [1_000, 2_000, 4_000, 9_000, 16_000])
def test_a_file_that_cannot_grow_is_reported_and_the_run_goes_on_later(
    limit: int, expected: dict[str, Any], toy_model_folder: Path, tmp_path: Path
) -> None:
    settings, output = small(toy_model_folder), tmp_path / "run"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            run_training(settings, output, show_progress=False)
        except ValueError as error:
            (tmp_path / "said").write_text(str(error))

    assert in_a_child(work) == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith("Cannot write the run")
    assert said.endswith(".")
    assert "\n" not in said
    assert not _half_written(output)
    started = (output / "config.json").exists()
    if started:
        assert "--resume" in said
    run_training(settings, output, resume=started, show_progress=False)
    assert made(output) == expected


@pytest.mark.parametrize(
    ("name", "call"), [("fsync", 1), ("fsync", 9), ("fsync", 20), ("replace", 5), ("replace", 8)]
)
def test_a_full_disk_at_any_call_is_one_sentence(
    name: str,
    call: int,
    expected: dict[str, Any],
    toy_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, output = small(toy_model_folder), tmp_path / "run"
    original, calls = getattr(os, name), 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        assert "No space left on device" in _refused(settings, output)
    run_training(settings, output, resume=(output / "config.json").exists(), show_progress=False)
    assert made(output) == expected


def test_what_torch_says_of_a_full_disk_is_understood(
    expected: dict[str, Any], toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = small(toy_model_folder), tmp_path / "run"
    save, calls = torch.save, 0

    def full(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < 6:
            return save(value, file, *args, **kwargs)
        if file != "/dev/full":
            Path(file).write_bytes(b"PK")
        return save(value, "/dev/full", *args, **kwargs)

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        said = _refused(settings, output)
    assert "the checkpoint of step 2 is kept" in said
    run_training(settings, output, resume=(output / "config.json").exists(), show_progress=False)
    assert made(output) == expected


def test_a_place_that_cannot_be_written_is_one_sentence(toy_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="Cannot write the run folder"):
        run_training(small(toy_model_folder), tmp_path / "file" / "run", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_errors_are_not_explained_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for error in (
        RuntimeError("shapes differ"),
        PermissionError(errno.EACCES, "no", "/elsewhere/data.jsonl"),
        FileNotFoundError(errno.ENOENT, "no", str(tmp_path / "x")),
    ):
        with pytest.raises(type(error)), explained(folder):
            raise error


def test_a_line_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = StepLines(tmp_path / "lines.jsonl")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            lines.append({"step": 1})
        assert not lines.path.exists()
    lines.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            lines.append({"step": 2})
    assert [json.loads(line) for line in lines.path.read_text().splitlines()] == [{"step": 1}]
