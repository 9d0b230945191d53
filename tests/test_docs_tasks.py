"""docs/tasks.md: its files are written and its commands run, in its order, as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from multiticket.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str | None, str]]:
    return [(kind, name, text) for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of the page, and what its scripts make."""
    place = tmp_path_factory.mktemp("docs-tasks")
    for _, name, text in blocks():
        if name:
            (place / name).write_text(text, encoding="utf-8")
    for name in ("make_more.py", "make_caller.py"):
        run_script(place, name)
    return place


def run_script(folder: Path, name: str) -> str:
    done = subprocess.run(
        [sys.executable, name], cwd=folder, capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


COMMANDS = [line for kind, _, text in blocks() if kind == "bash" for line in text.splitlines() if line]


def test_every_block_is_a_file_or_commands() -> None:
    assert all(name or kind == "bash" for kind, name, _ in blocks())
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(command)
    assert program == "multiticket"
    if "reasoning_gym:" in command:
        pytest.importorskip("reasoning_gym", reason="reasoning_gym is not installed")
    if "verifiers:" in command:
        pytest.importorskip("verifiers.v1", reason="verifiers is not installed")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr()
    assert end.value.code == 0, said.err[-2000:]
    assert said.out


def test_the_python_block(folder: Path) -> None:
    said = run_script(folder, "use.py")
    assert "Judgement(reward=1.0, correct=True), Judgement(reward=0.1, correct=False)" in said
    assert "Add." in said


def test_every_option_of_ones_own_task_is_on_the_page() -> None:
    from multiticket.tasks.custom import OPTIONS
    from multiticket.tasks.registry import LIBRARIES, TASKS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in OPTIONS)
    assert all(f"`{name}" in text for name in (*TASKS, *(f"{library}:NAME" for library in LIBRARIES)))
