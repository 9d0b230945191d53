"""docs/studies.md: its study is written and its commands run, in its order; so is its Python."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from multiticket.cli import main
from multiticket.research.study.page_section import PageSection

PAGE = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+) *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)


def test_the_study_as_a_reader_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ((name, study),) = [(name, text) for kind, name, text in BLOCKS if kind == "yaml"]
    Path(name).write_text(study, encoding="utf-8")
    ((_, _, commands),) = [block for block in BLOCKS if block[0] == "bash"]
    for command in commands.splitlines():
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        said = capsys.readouterr()
        assert end.value.code == 0, said.err[-2000:]
    report = Path("runs/first/report")
    assert (report / "index.html").is_file()
    assert (report / "index.html").as_posix() in PAGE
    assert len(list(Path("runs/first").glob("*/result.json"))) == 2
    sections = json.loads((report / "report.json").read_text())["sections"]
    assert [section["name"] for section in sections] == ["match", "training"]


def test_the_section_of_ones_own_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((name, code),) = [(name, text) for kind, name, text in BLOCKS if kind == "python"]
    exec(compile(code, name, "exec"), {})
    section = PageSection.model_validate_json(Path("cost.json").read_text())
    assert section.verdict == "reproduced"
