"""Questions answered from runs whose truth is known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from made_runs import make_runs

from multiticket.config import RunConfig
from multiticket.research.report.study_page import write_report
from multiticket.research.study.answers import answers
from multiticket.research.study.answers.sides import SINGLE_RUNS
from multiticket.research.study.collect import TABLE, records, write_parquet
from multiticket.research.study.grid import Study, build_study
from multiticket.research.study.other_tasks import results_file
from multiticket.research.study.page_section import Figure, PageSection, Series, Table, read_section

FULL = {"label": "full", "arm": "full", "learning_rate": 1e-4, "training_seed": [0, 1, 2]}


def asked(folder: Path, accuracy, *cells, shared=None, **question) -> PageSection:
    study = study_of(*cells, shared=shared, **question)
    make_runs(folder, study.runs, accuracy)
    return answers(study, folder, "multiticket study run study.yaml")[0]


def study_of(*cells, shared=None, **question) -> Study:
    return build_study(
        {
            "settings": {"task": "arithmetic", "eval": {"samples": 2}, **(shared or {})},
            "cells": list(cells),
            "questions": [{"name": "q", "claim": "It is so.", **question}],
        }
    )


def by_density(config: RunConfig) -> float:
    """0.8, and five points fewer for each tenth of what one in ten thousand has."""
    return 0.8 - 0.05 * max(0.0, -4 - math.log10(config.density)) - 0.1 * (config.density < 1.5e-4)


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.0, "reproduced"), (0.02, "not decided"), (0.06, "not reproduced")]
)
def test_a_comparison_decides_by_the_margin(tmp_path: Path, lost, verdict):
    ticket = {"label": "ticket", "seed": [0, 1, 2]}
    section = asked(
        tmp_path,
        lambda config: 0.8 - lost * (config.arm == "ticket"),
        FULL,
        ticket,
        kind="compare",
        reference="full",
        cell="ticket",
    )
    assert section.verdict == verdict
    side = section.numbers["sides"][0]
    assert side["difference"]["difference"] == pytest.approx(-lost, abs=0.01)
    assert (side["runs"], side["reference_runs"], side["problems"]) == (3, 3, 1500)
    assert "3 runs against 3 of the reference, 1,500 problems" in section.n
    everything = section.tables[-1]
    assert everything.folded
    assert len(everything.rows) == 6
    place = tmp_path / "report"
    assert all(row[-1] == f"multiticket study rerun {place} {row[0]}" for row in everything.rows)


def test_every_task_and_base_must_come_out_so(tmp_path: Path):
    shared = {"eval": {"samples": 1}}
    tasks = ["arithmetic", "alphabet_sort"]
    section = asked(
        tmp_path,
        lambda config: 0.8 - 0.1 * (config.arm == "ticket" and config.task == "alphabet_sort"),
        {**FULL, "task": tasks},
        {"label": "ticket", "task": tasks, "seed": [0, 1, 2]},
        shared=shared,
        kind="compare",
        reference="full",
        cell="ticket",
    )
    assert section.verdict == "not reproduced"
    assert [side["not_worse"] for side in section.numbers["sides"]] == [True, False]


def test_one_run_against_one_decides_nothing(tmp_path: Path):
    """Even where their scores leave no doubt; a second run of either side does."""
    ticket = {"label": "ticket", "seed": 0}
    for folder, seeds, verdict in (("one", [0], "not decided"), ("two", [0, 1], "reproduced")):
        section = asked(
            tmp_path / folder,
            lambda config: 0.9 if config.arm == "ticket" else 0.6,
            {**FULL, "training_seed": seeds},
            ticket,
            kind="compare",
            reference="full",
            cell="ticket",
        )
        assert section.verdict == verdict
        assert section.numbers["sides"][0]["adjusted_p"] < 0.01
        assert (SINGLE_RUNS in section.notes) == (folder == "one")


def test_a_verdict_waits_for_all_runs(tmp_path: Path):
    ticket = {"label": "ticket", "seed": [0, 1, 2]}
    study = study_of(FULL, ticket, kind="compare", reference="full", cell="ticket")
    section = answers(study, tmp_path, "c")[0]
    assert (section.verdict, section.answer) == ("not decided", "No pair of runs is finished.")
    make_runs(tmp_path, study.runs, lambda config: 0.8)
    assert answers(study, tmp_path, "c")[0].verdict == "reproduced"
    shutil.rmtree(tmp_path / study.runs[-1].name)
    section = answers(study, tmp_path, "c")[0]
    assert section.verdict == "not decided"
    assert "5 of the 6 runs" in section.notes[0]
    (tmp_path / study.runs[-1].name).mkdir()
    (tmp_path / study.runs[-1].name / "error.txt").write_text("no luck\n\nTraceback")
    assert answers(study, tmp_path, "c")[0].notes[1] == f"{study.runs[-1].name} failed: no luck"


def test_a_verdict_does_not_wait_for_runs_that_nothing_is_compared_with(tmp_path: Path):
    full = {**FULL, "task": ["arithmetic", "alphabet_sort"]}
    study = study_of(
        full, {"label": "ticket", "seed": [0, 1, 2]}, kind="compare", reference="full", cell="ticket"
    )
    make_runs(tmp_path, [run for run in study.runs if run.config.task == "arithmetic"], lambda config: 0.8)
    section = answers(study, tmp_path, "multiticket study run study.yaml")[0]
    assert section.verdict == "reproduced"
    assert not any("waits" in note for note in section.notes)


def test_masks_are_judged_at_once_and_told_from_training_seeds(tmp_path: Path):
    masks = {"label": "masks", "seed": list(range(8)), "learning_rate": 0.01}
    seeds = {"label": "seeds", "seed": 0, "training_seed": [1, 2, 3, 4], "learning_rate": 0.01}
    options = {"kind": "masks", "reference": "full", "cell": "masks", "seeds": "seeds"}
    fine = asked(tmp_path / "a", lambda config: 0.8, FULL, masks, seeds, **options)
    assert fine.verdict == "reproduced"
    assert "8 of 8 masks are shown to be not worse" in fine.answer
    assert "are not seen to differ" in fine.answer
    assert fine.numbers["spread"][0]["runs"] == 12
    one_bad = asked(
        tmp_path / "b", lambda config: 0.7 if config.seed == 5 else 0.8, FULL, masks, seeds, **options
    )
    assert one_bad.verdict == "not reproduced"
    assert "7 of 8 masks are shown to be not worse" in one_bad.answer
    assert "1 to be worse" in one_bad.answer
    apart = asked(
        tmp_path / "c", lambda config: 0.8 + 0.02 * (config.seed % 3), FULL, masks, seeds, **options
    )
    assert "masks differ by more than training seeds do" in apart.answer
    assert len(apart.figures[0].series[0].y) == 8


@pytest.mark.parametrize(
    ("breaks_at", "verdict"), [(0.0001, "reproduced"), (0.01, "not reproduced"), (None, "reproduced")]
)
def test_where_sparsity_breaks(tmp_path: Path, breaks_at, verdict):
    sparse = {
        "label": "sparse",
        "density": [0.1, 0.01, 0.001, 0.0001],
        "seed": [0, 1],
        "learning_rate": "auto",
    }
    options = {} if breaks_at is None else {"breaks_at": breaks_at}
    section = asked(
        tmp_path,
        by_density,
        FULL,
        sparse,
        kind="density",
        reference="full",
        cell="sparse",
        holds_to=0.001,
        **options,
    )
    assert section.verdict == verdict
    assert "not worse down to 0.1 % (1,000 numbers), worse from 0.01 % on (100 numbers)" in section.answer
    assert section.figures[0].series[0].x == [0.1, 0.01, 0.001, 0.0001]


@pytest.mark.parametrize(
    ("layers", "verdict"),
    [
        ("worse", "reproduced"),
        ("not worse", "not reproduced"),
        ("not better", "reproduced"),
        ("same", "not reproduced"),
        ("any", "reproduced"),
    ],
)
def test_controls_come_out_as_expected_or_not(tmp_path: Path, layers, verdict):
    section = asked(
        tmp_path,
        lambda config: 0.7 if config.method == "layers" else 0.8,
        {"label": "random", "seed": [0, 1]},
        {"label": "first", "method": "layers", "mask_options": {"layers": "first"}, "seed": [0, 1]},
        {"label": "columns", "method": "columns", "seed": [0, 1]},
        kind="controls",
        reference="random",
        expect={"first": layers, "columns": "same"},
    )
    assert section.verdict == verdict


@pytest.mark.parametrize(("exponent", "verdict"), [(-1, "reproduced"), (-0.5, "not reproduced")])
def test_the_law_of_the_rate(tmp_path: Path, exponent, verdict):
    choose = {"learning_rate": [1e-4, 1e-3, 1e-2, 1e-1], "seed": 100}
    sparse = {"label": "sparse", "density": [1e-1, 1e-2, 1e-3], "seed": [0, 1], "choose": choose}

    def best_at_a_rate_over_density(config: RunConfig) -> float:
        return 0.8 - 0.1 * abs(math.log10(float(config.learning_rate) * config.density / 1e-4))

    section = asked(
        tmp_path, best_at_a_rate_over_density, sparse, kind="law", cells=["sparse"], exponent=exponent
    )
    assert section.verdict == verdict
    law = section.numbers["laws"][0]
    assert law["n"] == 3  # one a density, however many runs took the rate
    assert law["exponent"] == pytest.approx(-1)
    assert any("at the edge" in note for note in section.notes)
    collapsed = asked(
        tmp_path, best_at_a_rate_over_density, sparse, kind="collapse", cells="sparse", exponent=-exponent
    )
    assert collapsed.numbers["collapses"][0]["exponent"] == pytest.approx(1.0, abs=0.02)
    assert collapsed.verdict == "not decided"  # one run a cell says nothing of chance


@pytest.mark.parametrize(("lost", "verdict"), [(0.0, "reproduced"), (0.1, "not reproduced")])
def test_what_is_forgotten_is_judged_on_the_other_task(tmp_path: Path, lost, verdict):
    cells = [
        {**FULL, "also": "alphabet_sort"},
        {"label": "ticket", "also": "alphabet_sort", "seed": [0, 1, 2]},
    ]
    study = study_of(*cells, kind="elsewhere", reference="full", cell="ticket")
    make_runs(tmp_path, study.runs, lambda config: 0.8)
    section = answers(study, tmp_path, "c")[0]
    assert (section.verdict, section.answer) == (
        "not decided",
        "No pair of runs is evaluated on another task.",
    )
    there = tmp_path / "there"
    make_runs(there, study.runs, lambda config: 0.3 - lost * (config.arm == "ticket"))
    for run in study.runs:
        path = results_file(tmp_path / run.name, "alphabet_sort")
        path.parent.mkdir()
        (there / run.name / "eval-after.jsonl").rename(path)
    section = answers(study, tmp_path, "c")[0]
    assert section.verdict == verdict
    assert section.numbers["sides"][0]["difference"]["difference"] == pytest.approx(-lost, abs=0.01)
    assert section.numbers["own"][0]["difference"]["difference"] == pytest.approx(0, abs=0.01)
    assert "arithmetic → alphabet_sort" in section.answer
    assert "Beside the base" not in section.answer  # as of runs that were measured before bases were
    make_runs(there, study.runs, lambda config: 0.45)
    for run in study.runs:
        path = results_file(tmp_path / run.name, "alphabet_sort", "before")
        (there / run.name / "eval-after.jsonl").rename(path)
    section = answers(study, tmp_path, "c")[0]
    assert section.verdict == verdict
    since = {side["side"]: side for side in section.numbers["since"]}
    assert [side["reference_runs"] for side in since.values()] == [1, 1]
    assert [side["runs"] for side in since.values()] == [3, 3]
    assert since["full"]["difference"]["difference"] == pytest.approx(-0.15, abs=0.02)
    assert since["ticket 1 %"]["difference"]["difference"] == pytest.approx(-0.15 - lost, abs=0.02)
    assert all(side["worse"] for side in since.values())
    assert "Beside the base: full (arithmetic → alphabet_sort, tiny-qwen2): 30" in section.answer


@pytest.mark.parametrize(
    ("masks", "verdict", "shared"),
    [({"seed": [0, 1, 2]}, "reproduced", True), ({"seed": 0, "part": [0, 1, 2]}, "reproduced", False)],
)
def test_masks_share_what_chance_gives_or_nothing(
    masks, verdict, shared, toy_model_folder: Path, tmp_path: Path
):
    cell = {"label": "masks", "model": str(toy_model_folder), "density": 0.1, **masks}
    section = answers(study_of(cell, kind="overlap", cell="masks"), tmp_path, "c")[0]
    assert section.verdict == verdict
    assert len(section.numbers["pairs"]) == 3
    for pair in section.numbers["pairs"]:
        assert abs(pair["z"]) < 4 if shared else pair["intersection"] == 0
    assert bool(section.figures) == shared


def test_the_law_of_the_first_step(tmp_path: Path):
    cell = {"label": "grid", "density": [0.1, 0.01], "seed": [0, 1], "learning_rate": 1e-3}
    section = asked(tmp_path, lambda config: 0.5, cell, kind="law", cells=["grid"], exponent=2, y="kl")
    assert section.verdict == "reproduced"
    assert section.numbers["laws"][0]["exponent"] == pytest.approx(2)


def test_what_other_commands_measured_and_what_cannot_be_is_listed(tmp_path: Path):
    study = build_study(
        {
            "cells": [FULL],
            "questions": [
                {"name": "cost", "claim": "c", "kind": "record", "record": "cost.json", "command": "measure"},
                {"name": "large", "claim": "l", "kind": "none", "why": "No such model is here."},
            ],
        },
        folder=tmp_path,
    )
    cost, large = answers(study, tmp_path, "c")
    assert cost.verdict == "not decided"
    assert (large.verdict, large.answer) == ("not testable here", "No such model is here.")
    kept = PageSection(
        name="x",
        heading="x",
        verdict="reproduced",
        answer="Yes.",
        tables=[Table(caption="t", columns=["a"], rows=[[1]])],
    )
    (tmp_path / "cost.json").write_text(kept.model_dump_json())
    cost, _ = answers(study, tmp_path, "c")
    assert (cost.name, cost.heading, cost.verdict, cost.command) == ("cost", "c", "reproduced", "measure")
    assert cost.tables == kept.tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not hold a report's section"),
        ('{"name": "x", "heading": "x"}', "answer: Field required"),
        ('{"name": "x", "heading": "x", "answer": "x", "verdict": "true"}', "verdict: Input should be"),
        (
            '{"name":"x","heading":"x","answer":"x","tables":[{"caption":"t","columns":["a"],"rows":[[1,2]]}]}',
            "another length than its columns",
        ),
    ],
)
def test_what_is_no_section_is_refused(tmp_path: Path, text, words):
    path = tmp_path / "section.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_section(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_section(tmp_path / "none.json")


def test_a_series_has_a_value_for_each_place():
    with pytest.raises(ValueError, match="2 places and 1 values"):
        Series(name="s", x=[1.0, 2.0], y=[1.0])
    with pytest.raises(ValueError, match="needs a series with a value"):
        Figure(kind="chart", caption="c", alternative="a")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"kind": "guess"}, "the kinds are compare"),
        ({"kind": "compare", "reference": "full"}, "needs cell"),
        ({"kind": "compare", "reference": "full", "cell": "tickets"}, "labelled 'tickets'"),
        ({"kind": "compare", "reference": "full", "cell": "full", "colour": 1}, "not 'colour'"),
        ({"kind": "compare", "reference": "full", "cell": "full", "margin": 2}, "above 0 and below 1"),
        ({"kind": "controls", "reference": "full", "expect": {"full": "fine"}}, "expect says"),
        ({"kind": "law", "cells": ["full"], "exponent": "one"}, "must be a number"),
        ({"kind": "none", "why": "x", "name": "a b"}, "a unique name"),
        ({"kind": "none", "why": "x", "claim": ""}, "needs a claim"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(question, words):
    with pytest.raises(ValueError, match=words):
        study_of(FULL, **question)


def test_a_study_that_asks_nothing_has_no_report(tmp_path: Path):
    with pytest.raises(ValueError, match="asks no questions"):
        answers(build_study({"cells": [FULL]}), tmp_path, "c")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"arm": "full", "learning_rate": 3e-4, "training_seed": 2, "micro_batch": 64, "rollouts": 256},
        {"method": "layers", "mask_options": {"layers": "first"}, "learning_rate": "auto"},
        {"grpo": {"optim": "sgd", "optim_args": "momentum=0.9"}, "eval": {"problems": None, "samples": 2}},
        {"target_kl": 0.3, "learning_rate": "auto"},
    ],
)
def test_the_command_beside_a_run_gives_its_settings(settings, tmp_path: Path, monkeypatch):
    import shlex

    from multiticket.cli import main

    monkeypatch.chdir(tmp_path)
    study = build_study(
        {
            "cells": [{"label": "full", "arm": "full", "steps": 3}, {"label": "one", **settings}],
            "questions": [{"name": "q", "claim": "c", "kind": "compare", "reference": "full", "cell": "one"}],
        }
    )
    make_runs(Path("runs/study"), study.runs, lambda config: 0.5)
    (section,) = answers(study, Path("runs/study"), "c", Path("my report"))
    write_parquet(records(study, Path("runs/study")), Path("my report") / TABLE)
    config = study.cell("one").runs[0].config
    command = section.tables[-1].rows[-1][-1]
    seen = {}

    def look(config, output, **kwargs):
        seen["config"] = config
        raise SystemExit

    monkeypatch.setattr("multiticket.train.run.run_training", look)
    with pytest.raises(SystemExit):
        main(shlex.split(command)[1:])
    assert seen["config"] == config


def test_what_runs_did_while_they_trained(tmp_path: Path):
    """A band over the runs of a cell, phases of a step, and no verdict."""
    cells = [FULL, {"label": "ticket", "seed": 0}]
    study = study_of(*cells, kind="training", cells=["full", "ticket"])
    assert answers(study, tmp_path, "c")[0].answer == "No run is finished."
    make_runs(tmp_path, study.runs, lambda config: 0.8)
    for number, run in enumerate(study.runs):
        lines = [
            {
                "step": step,
                "time": 2.0 * step,
                "reward": 0.1 * step + 0.01 * number,
                "kl_per_completion": 0.05,
                "completion_length": 20.0,
                "generate_s": 1.5,
                "train_s": float(step),
                **(
                    {"train_peak_bytes": (5 - step) * 10**9} if number == 3 else {}
                ),  # a run of a later version
            }
            for step in (1, 2, 3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / run.name / "metrics.jsonl").write_text(text)
    section = answers(study, tmp_path, "c")[0]
    assert section.verdict is None
    assert section.n == "4 of 4 runs"
    assert section.answer.startswith("arithmetic, tiny-qwen2: base ")
    scores, rewards, kl = section.figures
    assert [one.name for one in scores.series] == ["full", "ticket"]
    assert scores.series[0].x == ["full, seed 0", "full, seed 1", "full, seed 2"]
    assert scores.marks[0].label.startswith("base ")
    full, ticket = rewards.series
    assert (full.name, ticket.name) == ("full, 3 runs", "ticket")
    assert full.y == pytest.approx([0.11, 0.16, 0.21])
    assert full.low == pytest.approx([0.10, 0.15, 0.20])
    assert full.high == pytest.approx([0.12, 0.17, 0.22])
    assert ticket.y == pytest.approx([0.13, 0.18, 0.23])
    assert ticket.low is None
    assert kl.y_log
    columns = dict(zip(section.tables[0].columns, section.tables[0].rows[0], strict=True))
    assert (columns["run"], columns["generating s"], columns["passes s"]) == ("full, seed 0", 1.5, 2.0)
    memory = section.tables[1]
    assert memory.columns == ["run", "generating GB", "passes GB", "optimiser GB", "KL GB", "measuring GB"]
    assert memory.rows == [["ticket, seed 0", None, 4.0, None, None, None]]
    assert write_report([section], tmp_path / "report", "t", "c").exists()
