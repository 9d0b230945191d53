"""The report of a study: what is written, and that it says what the sections say."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import make_runs
from made_sections import CHART, INTERVALS, MATRIX, SECTIONS

from multiticket.cli import main
from multiticket.research.report.figures import SERIES, files_of, inline_svg
from multiticket.research.report.study_page import write_report
from multiticket.research.study.grid import load
from multiticket.research.study.page_section import PageSection


class Tags(HTMLParser):
    """Opening tags with their attributes, and whether every one is closed."""

    VOID = ("meta", "link", "br", "use", "path", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(SECTIONS, folder, "Claims & verdicts", "multiticket study report x.yaml")
    return folder


def test_the_page_is_whole_and_asks_for_nothing(folder: Path):
    text = (folder / "index.html").read_text()
    tags = Tags(text)
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags.found:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name, "")
            if target.startswith("#"):
                assert target[1:] in ids
            elif target and target != "data:,":
                assert (folder / target).exists()
    for used in re.findall(r"url\(#([^)]+)\)", text):
        assert used in ids
    assert "https://" not in text
    assert not re.search(r"@import|@font-face", text)


def test_claims_are_headings_with_verdict_numbers_and_command(folder: Path):
    text = (folder / "index.html").read_text()
    assert '<h2 id="masks-heading">Random 1\N{NO-BREAK SPACE}% masks &lt;all&gt; succeed.</h2>' in text
    assert "They do &amp; by a margin." in text
    assert "n: 20 runs, 1,688 problems" in text
    assert "multiticket study run evidence.yaml" in text
    assert "4 claims: 1 reproduced, 1 not reproduced, 1 not testable here." in text
    assert "b &lt;side&gt;" in text


def test_it_has_what_screen_readers_and_keyboards_need(folder: Path):
    tags = Tags((folder / "index.html").read_text())
    assert tags.all("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(tags.all(landmark)) == 1
    assert tags.all("a")[0]["href"] == "#main"
    assert len(tags.all("h1")) == 1
    assert len(tags.all("h2")) == len(SECTIONS)
    assert all("aria-labelledby" in section for section in tags.all("section"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in tags.all("svg"))
    assert {svg["aria-label"] for svg in tags.all("svg")} == {
        figure.alternative for section in SECTIONS for figure in section.figures
    }
    assert all(head.get("scope") in ("col", "row") for head in tags.all("th"))
    assert len(tags.all("caption")) + len(tags.all("details")) == len(tags.all("table"))


def test_figures_are_files_and_pictures_in_the_colours_of_the_page(folder: Path):
    for name in ("masks-1", "masks-2", "rate-1"):
        assert (folder / f"figures/{name}.svg").read_bytes().startswith(b"<?xml")
        assert (folder / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    svg = files_of(INTERVALS, "x")["svg"]
    element = inline_svg(svg, "x", INTERVALS.alternative)
    assert SERIES[0].encode() in svg
    assert "var(--series-1)" in element
    assert "var(--ink)" in element
    assert not re.search(r"#[0-9a-f]{6}", element)
    assert ">seed 0, " not in element
    assert ">seed 0<" in element  # text stays text
    assert "metadata" not in element


@pytest.mark.parametrize("figure", [INTERVALS, CHART, MATRIX])
def test_the_same_figure_gives_the_same_files(figure):
    assert files_of(figure, "x") == files_of(figure, "x")


def test_the_json_holds_the_same_sections(folder: Path):
    data = json.loads((folder / "report.json").read_text())
    assert [PageSection.model_validate(section) for section in data["sections"]] == SECTIONS
    assert data["title"] == "Claims & verdicts"


def test_nothing_is_left_half_written(folder: Path):
    assert list(folder.rglob(".*")) == []
    with pytest.raises(ValueError, match="named 'masks'"):
        write_report([SECTIONS[0], SECTIONS[0]], folder, "t", "c")


STUDY = """
title: A small study
settings: {task: arithmetic, eval: {samples: 1}}
cells:
  - {label: full, arm: full, training_seed: [0, 1], choose: {learning_rate: [1e-4, 3e-4], training_seed: 100}}
  - {label: ticket, seed: [0, 1]}
questions:
  - {name: match, claim: One matches the other., kind: compare, reference: full, cell: ticket}
"""


def test_the_command_writes_the_report_of_a_study(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    make_runs(Path("runs/study"), load(Path("study.yaml")).runs, lambda config: 0.8)
    main_ends(0, "study", "report", "study.yaml", "--output", "out")
    printed = capsys.readouterr().out
    assert "reproduced          One matches the other." in printed
    text = Path("out/index.html").read_text()
    assert "A small study" in text
    assert "multiticket study run study.yaml" in text
    assert "multiticket study report study.yaml --output out" in text
    assert json.loads(Path("out/report.json").read_text())["sections"][0]["verdict"] == "reproduced"
    page, figure = Path("out/index.html").read_bytes(), Path("out/figures/match-1.svg").read_bytes()
    assert Path("out/runs.parquet").exists()
    shutil.rmtree("runs")
    shutil.rmtree("out/figures")
    Path("out/index.html").unlink()
    main_ends(0, "study", "report", "out")
    assert Path("out/index.html").read_bytes() == page
    assert Path("out/figures/match-1.svg").read_bytes() == figure
    main_ends(2, "study", "report", "out", "--output", "elsewhere")


def test_a_study_without_runs_is_not_decided_and_one_without_questions_is_refused(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    main_ends(0, "study", "report", "study.yaml")
    assert "not decided" in capsys.readouterr().out
    Path("study.yaml").write_text(STUDY.partition("questions")[0])
    main_ends(2, "study", "report", "study.yaml")
    assert "asks no questions" in capsys.readouterr().err


def main_ends(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == code
