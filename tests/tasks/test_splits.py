"""What is said of splits before a run and a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_task import TASK, CopyLetter

from multiticket import tasks
from multiticket.cli import main


def folder_of(place: Path, train: int, test: int, **columns: str) -> str:
    place.mkdir()
    for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
        rows = [{name: text.format(n) for name, text in columns.items()} for n in numbers]
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("gsm8k", {"question": "How many are {}?", "answer": "#### {}"}),
        ("math", {"problem": "How many are {}?", "answer": "{}"}),
    ],
)
def test_the_tasks_of_folders_say_their_splits(name: str, columns: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    task = tasks.get(f"{name}@{folder_of(tmp_path / name, 600, 40, **columns)}")
    cut = " (validation cut from train by a hash of the prompt)"
    assert tasks.before_a_run(task, "test", None) == [f"88 train, 512 validation, 40 test problems{cut}."]
    assert tasks.before_a_measurement(task, "test", 40) == ["40 test problems."]
    assert tasks.before_a_measurement(task, "validation", None) == [f"512 validation problems{cut}."]


def test_so_does_every_other() -> None:
    task = tasks.get("arithmetic")
    sizes = [len(task.problems(split)) for split in tasks.SPLITS]
    (said,) = tasks.before_a_run(task, "test", 1000)
    assert said == "{:,} train, {:,} validation, {:,} test problems.".format(*sizes)


@pytest.mark.parametrize(("problems", "points"), [(1, 50), (4, 49), (29, 18), (30, None), (None, None)])
def test_too_few_to_decide_anything_are_told_whether_the_split_or_the_person_says_so(
    problems: int | None, points: int | None
) -> None:
    for sentences in (tasks.before_a_run, tasks.before_a_measurement):
        sizes, *few = sentences(TASK, "test", problems)
        assert "40 test" in sizes
        assert [
            f"reaches {points} points to either side. Measure more with --problems." in one for one in few
        ] == ([True] if points else [])
    first = tasks.before_a_measurement(TASK, "test", problems)[0]
    assert ("are measured" in first) == (problems not in (None, 1))
    assert ("The first 1 of them is measured." in first) == (problems == 1)
    assert all("With 1 test problem a" in one for one in few) or problems != 1


def test_what_the_task_adds_is_said_and_what_it_lacks_is_left_out() -> None:
    class Odd(CopyLetter):
        def problems(self, split: str) -> Any:
            if split == "validation":
                raise KeyError(split)
            return super().problems(split).select(range(10))

        def notes(self) -> list[str]:
            return ["Mind the gap."]

    assert tasks.before_a_run(Odd(), "test", None) == [
        "10 train, 10 test problems.",
        "Mind the gap.",
        "With 10 test problems a 95 % interval around 50 % reaches 31 points to either side. "
        "Give the task more test problems.",
    ]


def test_a_measurement_says_so(toy_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(
            [
                "eval",
                str(toy_model_folder),
                "--task",
                "toy_task:TASK",
                "--problems",
                "4",
                "--samples",
                "1",
                "--json",
            ]
        )
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert json.loads(said.out)["n"] == 4
    assert "eval: 40 test problems. The first 4 of them are measured." in said.err
    assert "eval: With 4 test problems" in said.err
