"""The study files that come with the repository: they load, and ask of cells that they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiticket.research.study.answers import answers
from multiticket.research.study.grid import load

STUDIES = Path(__file__).resolve().parents[3] / "recipes" / "studies"


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_study_file_loads_and_answers_before_its_first_run(file: Path, tmp_path: Path):
    study = load(file)
    assert study.name == file.stem
    sections = answers(study, tmp_path, "c")
    assert [section.name for section in sections] == [question.name for question in study.questions]
    decided = {section.name for section in sections if section.verdict in ("reproduced", "not reproduced")}
    assert decided <= {
        q.name for q in study.questions if q.kind in ("overlap", "record")
    }  # which need no runs


def test_the_evidence_covers_both_tasks_with_rates_from_validation_and_five_seeds():
    study = load(STUDIES / "evidence.yaml")
    for label in ("full", "ticket"):
        cell = study.cell(label)
        for task in ("arithmetic", "alphabet_sort"):
            seeds = {run.config.training_seed for run in cell.runs if run.config.task == task}
            rates = {run.config.learning_rate for run in cell.sweep if run.config.task == task}
            assert (len(seeds), len(rates)) == (5, 4)
        assert {run.config.eval.split for run in cell.sweep} == {"validation"}
        assert {run.config.eval.split for run in cell.runs} == {"test"}
        assert {run.config.training_seed for run in cell.sweep}.isdisjoint(
            run.config.training_seed for run in cell.runs
        )
    masks = {(run.config.seed, run.config.part) for run in study.cell("masks").runs}
    parts = {(run.config.seed, run.config.part) for run in study.cell("parts").runs}
    assert len(masks) == len(parts) == 20
    of_tickets = {run.name for run in study.cell("ticket").sweep}
    assert {
        run.name for label in ("masks", "parts", "one mask") for run in study.cell(label).sweep
    } <= of_tickets
