"""What runs a study file describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket.config import build
from multiticket.research.study.grid import build_study, load
from multiticket.research.study.study_run import expand, identity, run_name


@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4)
)
def test_a_cell_multiplies_its_lists_out(cell):
    chosen = expand(cell)
    size = 1
    for values in cell.values():
        size *= len(values)
    assert len(chosen) == size
    assert all(set(choice) == set(cell) for choice in chosen)


def test_an_empty_list_is_a_setting_and_no_choice():
    assert expand({"report_to": [], "seed": [0, 1]}) == [
        {"report_to": [], "seed": 0},
        {"report_to": [], "seed": 1},
    ]


def test_cells_share_settings_and_add_their_own():
    study = build_study(
        {
            "name": "s",
            "settings": {"steps": 7, "eval": {"split": "validation", "samples": 2}},
            "cells": [
                {"arm": "full", "learning_rate": ["1e-4", 3e-4]},
                {"arm": "ticket", "density": [0.1, 0.01], "seed": [0, 1], "eval": {"samples": 1}},
            ],
        }
    )
    assert study.name == "s"
    assert [run.config.arm for run in study.runs] == ["full"] * 2 + ["ticket"] * 4
    assert all(run.config.steps == 7 and run.config.eval.split == "validation" for run in study.runs)
    assert [run.config.eval.samples for run in study.runs] == [2, 2, 1, 1, 1, 1]
    assert [(run.config.density, run.config.seed) for run in study.runs[2:]] == [
        (0.1, 0),
        (0.1, 1),
        (0.01, 0),
        (0.01, 1),
    ]


def test_names_are_told_apart_by_all_settings_and_stay_the_same():
    one = build({"arm": "ticket", "seed": 3})
    chosen = {"arm": "ticket", "seed": 3}
    name = run_name(chosen, identity(one))
    assert name.startswith("ticket-seed3-")
    assert name == run_name(chosen, identity(build({"arm": "ticket", "seed": 3})))
    assert name != run_name(chosen, identity(build({"arm": "ticket", "seed": 3, "steps": 51})))
    odd = run_name({"task": "my/mod:task", "scope": "a,b*"}, identity(one))
    assert not set(odd) & set("/:*")


def test_two_cells_that_ask_for_one_run_get_one():
    study = build_study({"cells": [{"seed": [0, 1]}, {"seed": 1}]})
    assert len(study.runs) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cells": []}, "cells must be a list"),
        ({"cell": [{}]}, "not 'cell'"),
        ({"cells": [{}], "settings": [1]}, "settings must be a mapping"),
        ({"cells": [{"seed": 0}, {"density": 2}]}, "Cell 2 of the study is wrong: density"),
        ({"cells": [{}], "tasks": [1]}, "tasks must give each task's settings"),
        ({"cells": [{}, {"label": "cell 1"}]}, "labelled 'cell 1' before it"),
        ({"cells": [{"speed": 1}]}, "Unknown setting 'speed'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(content, words):
    with pytest.raises(ValueError, match=words):
        build_study(content)


def test_a_file_is_named_after_itself(tmp_path: Path):
    file = tmp_path / "sparsity.yaml"
    file.write_text("cells:\n  - {arm: full, learning_rate: [1e-4, 3e-4]}\n")
    study = load(file)
    assert study.name == "sparsity"
    assert [run.config.learning_rate for run in study.runs] == [1e-4, 3e-4]


def test_tasks_have_settings_of_their_own_between_the_studys_and_the_cells():
    study = build_study(
        {
            "settings": {"steps": 7, "rollouts": 64},
            "tasks": {"arithmetic": {"steps": 8}, "alphabet_sort": {"steps": 9, "rollouts": 32}},
            "cells": [{"task": ["arithmetic", "alphabet_sort", "gsm8k"]}, {"steps": 1}],
        }
    )
    assert [(run.config.steps, run.config.rollouts) for run in study.runs] == [
        (8, 64),
        (9, 32),
        (7, 64),
        (1, 64),
    ]


def test_a_run_of_two_cells_is_measured_where_either_asks():
    study = build_study(
        {
            "cells": [
                {"label": "a", "seed": [0, 1]},
                {"label": "b", "seed": 1, "also": ["alphabet_sort", "arithmetic"]},
            ]
        }
    )
    assert [[*run.also] for run in study.runs] == [
        [],
        ["alphabet_sort"],
    ]  # its own task it is measured on anyway
    assert study.cell("a").runs == study.runs


def test_on_another_task_a_run_is_asked_as_that_tasks_own_runs_are():
    study = build_study(
        {
            "settings": {"eval": {"problems": 9}},
            "tasks": {
                "arithmetic": {"examples": 3, "max_completion_tokens": 4},
                "alphabet_sort": {"system_prompt": "Sort.", "eval": {"samples": 2}},
            },
            "cells": [{"task": ["arithmetic", "alphabet_sort"], "also": ["arithmetic", "alphabet_sort"]}],
        }
    )
    sums, names = study.runs
    assert (sums.also["alphabet_sort"], names.also["arithmetic"]) == (names.config, sums.config)
    assert sums.config.examples == 3
    assert sums.also["alphabet_sort"].examples is None
    assert sums.also["alphabet_sort"].eval.problems == 9
