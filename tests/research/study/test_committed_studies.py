"""What the repository keeps of its studies: a page, its data, and a table from which every run can be done again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet
import pytest

from multiticket.cli import main
from multiticket.config import RunConfig
from multiticket.research.report.page import page
from multiticket.research.study.collect import TABLE, read_run
from multiticket.research.study.grid import load
from multiticket.research.study.page_section import PageSection

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/report.json"))


PICTURE = "<svg/>"


def without_pictures(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", PICTURE, page, flags=re.DOTALL)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_page_is_what_its_data_give(folder: Path):
    data = json.loads((folder / "report.json").read_text())
    sections = [PageSection.model_validate(section) for section in data["sections"]]
    pictures = {
        one.name: [(PICTURE, f"figures/{one.name}-{number + 1}") for number in range(len(one.figures))]
        for one in sections
    }
    again = page(sections, pictures, data["title"], data["command"], data["version"])
    assert again == without_pictures((folder / "index.html").read_text())


def test_a_report_is_drawn_again_from_its_data(tmp_path: Path, capsys):
    folder = min(STUDIES, key=lambda folder: (folder / "report.json").stat().st_size)
    shutil.copy(folder / "report.json", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["study", "report", str(tmp_path)])
    assert ended.value.code == 0
    data = json.loads((folder / "report.json").read_text())
    assert json.loads((tmp_path / "report.json").read_text()) == data
    again, kept = ((place / "index.html").read_text() for place in (tmp_path, folder))
    assert without_pictures(again) == without_pictures(kept)
    figures = sum(len(section["figures"]) for section in data["sections"])
    assert len(list((tmp_path / "figures").iterdir())) == 3 * figures
    assert data["sections"][0]["heading"] in capsys.readouterr().out


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_run_on_the_page_is_in_the_table_with_the_same_numbers(folder: Path):
    rows = {row["run"]: row for row in pyarrow.parquet.read_table(folder / TABLE).to_pylist()}
    asked = [run.name for run in load(ROOT / f"recipes/studies/{folder.name}.yaml").runs]
    assert [*rows] == [name for name in asked if name in rows]  # a study may go on after its first page
    if len(rows) < len(asked):
        said = re.findall(r"(\d+) of (?:the )?(\d+) runs", (folder / "index.html").read_text())
        assert any(int(done) < int(count) for done, count in said)
    shown = 0
    for section in json.loads((folder / "report.json").read_text())["sections"]:
        for table in section["tables"]:
            if table["columns"][-1] != "command":
                continue
            for name, rate, accuracy, greedy, n, trained, command in table["rows"]:
                row = rows[name]
                assert rate == float(f"{row['learning_rate']:.3g}")
                assert (accuracy, greedy) == (
                    round(100 * row["after.pass@1"], 2),
                    round(100 * row["after.greedy"], 2),
                )
                assert (n, trained) == (row["after.n"], row["nnz"])
                assert command == f"multiticket study rerun docs/results/{folder.name} {name}"
                shown += 1
    assert shown


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_row_has_whole_settings_and_result(folder: Path):
    for row in pyarrow.parquet.read_table(folder / TABLE).to_pylist():
        config, result = RunConfig(**json.loads(row["config"])), json.loads(row["result"])
        assert (config.task, config.model, config.arm) == (row["task"], row["model"], row["arm"])
        assert (result["nnz"], result["eval"]["after"]["pass@1"]) == (row["nnz"], row["after.pass@1"])


def test_a_run_that_is_not_there_is_a_sentence(tmp_path: Path, capsys):
    with pytest.raises(ValueError, match=r"no run 'x'; its first is"):
        read_run(STUDIES[0], "x")
    for arguments in (["rerun", str(tmp_path), "x"], ["report", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            main(["study", *arguments])
        assert ended.value.code == 2
    assert "There is no" in capsys.readouterr().err


def test_docs_stay_small():
    listed = subprocess.run(
        ["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert len(listed.stdout.splitlines()) <= 120
