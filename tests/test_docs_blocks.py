"""Every block of README and docs: Python is Python, commands exist with their options, the small programs run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from multiticket.cli import app
from multiticket.cli.outputs import with_json_places
from multiticket.ticket import Ticket

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*) *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCHED = "-m multiticket "


class Block(NamedTuple):
    page: str
    kind: str
    name: str
    text: str


BLOCKS = [
    Block(page.name, *found) for page in PAGES for found in BLOCK.findall(page.read_text(encoding="utf-8"))
]
PYTHON = [block for block in BLOCKS if block.kind == "python"]


def commands() -> list[tuple[str, str]]:
    """(page, what follows ``multiticket`` in a line of a block), continued lines joined."""
    found = []
    for block in BLOCKS:
        if block.kind in ("", "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                start = line.find(LAUNCHED)
                if start >= 0:
                    found.append((block.page, line[start + len(LAUNCHED) :]))
                elif line.startswith("multiticket "):
                    found.append((block.page, line.removeprefix("multiticket ")))
    return found


def parsed(line: str) -> Any:
    """The command's own reading of a line; nothing runs. Raises what a person who types it would see."""
    words = shlex.split(line, comments=True)
    group: Any = get_command(app)
    name = words.pop(0)
    command = group.commands[name]
    if hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    return command.make_context(name, with_json_places(words))


def test_the_pages_have_blocks_in_a_known_language() -> None:
    assert {block.kind for block in BLOCKS} <= {"", "bash", "json", "python", "text", "yaml"}
    assert sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES) == 2 * len(BLOCKS)
    assert len(PYTHON) >= 15
    assert len(commands()) >= 40


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_line_is_one(page: str, line: str) -> None:
    """Values that a reader fills in ($run, ..., FILE) are words to the commands too."""
    parsed(line.replace("...", "").replace("$resume", ""))


@pytest.mark.parametrize(
    "line", ["trian --steps 3", "train --stepz 3", "study fun x.yaml", "eval --problems x"]
)
def test_one_that_is_none_is_told(line: str) -> None:
    with pytest.raises((KeyError, Exception)) as told:
        parsed(line)
    assert isinstance(told.value, KeyError) or hasattr(told.value, "format_message")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}-{block.name or block.text[:20]!r}")
def test_python_is_python(block: Block) -> None:
    ast.parse(block.text, f"{block.page} {block.name}")


def test_a_supervised_trainer_makes_a_ticket(tmp_path: Path) -> None:
    (block,) = [block for block in PYTHON if block.name == "finetune.py"]
    (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, block.name],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ticket = Ticket.load(tmp_path / "sums.safetensors")
    assert ticket.told["task"] == "sums"
    assert ticket.told["model"] == "tiny-qwen2"
