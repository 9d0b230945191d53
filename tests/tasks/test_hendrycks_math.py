r"""MATH: problems whose reference is in the last box of a solution."""

import json
from pathlib import Path

import pytest

from multiticket import tasks

ROWS = [
    {"problem": "Solve.", "solution": r"First $\boxed{1}$, then $\boxed{\left[0,\frac{1}{2}\right)}$."},
    {"problem": "Who?", "solution": r"$\boxed{\text{Evelyn}}$"},
    {"problem": "Old style?", "solution": r"$\boxed 2$."},
    {"problem": "Both?", "solution": r"$\boxed{1}$", "answer": r"\sqrt{5}"},
]


def write(folder: Path, rows: list[dict[str, str]], split: str) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path,
        [{"problem": f"{n}?", "solution": rf"\boxed{{{n}}}"} for n in range(600)] + ROWS[:1],
        "train",
    )
    write(tmp_path, ROWS, "test")
    return tmp_path


def test_references(folder: Path) -> None:
    answers = tasks.get(f"math@{folder}").problems("test")["answer"]
    assert list(answers) == [r"\left[0,\frac{1}{2}\right)", r"\text{Evelyn}", "2", r"\sqrt{5}"]


def test_a_test_problem_is_never_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTITICKET_MATH", str(folder))
    task = tasks.get("math")
    assert "Solve." not in task.problems("train")["prompt"]
    assert len(task.problems("train")) + len(task.problems("validation")) == 600


def test_scores(folder: Path) -> None:
    task = tasks.get(f"math@{folder}")
    interval = r"\left[0,\frac{1}{2}\right)"
    assert task.score(r"$\boxed{[0, 0.5)}$", interval) == 1.0
    assert task.score(r"$\boxed{(0, 0.5)}$", interval) == 0.0
    assert task.score("#### [0, 1/2)", interval) == 1.0
    assert task.score("[0, 1/2)", interval) == 0.0


def test_a_problem_without_reference_is_a_value_error(folder: Path) -> None:
    write(folder, [{"problem": "Why?"}], "test")
    with pytest.raises(ValueError, match=r"'Why\?' has neither an answer nor a solution"):
        tasks.get(f"math@{folder}").problems("test")


def test_problems_without_reference_are_left_out_and_counted(folder: Path) -> None:
    write(folder, [*ROWS, {"problem": "Why?"}, {"problem": "How?", "solution": "So."}], "test")
    with pytest.warns(UserWarning, match="2 of 6 problems of math test are left out: The problem 'Why"):
        problems = tasks.get(f"math@{folder}").problems("test")
    assert len(problems) == 4


def test_one_solution_with_two_forms_does_not_refuse_the_others(folder: Path) -> None:
    write(folder, [*ROWS, {"problem": "Mean?", "solution": r"$\frac52$ or $\boxed{2\frac{1}{2}}.$"}], "test")
    assert tasks.get(f"math@{folder}").problems("test")["answer"][-1] == r"2\frac{1}{2}"


def test_from_the_hub_all_subjects_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [{"problem": f"{config} {n}", "solution": rf"\boxed{{{n}}}"} for n in range(100)]

    monkeypatch.delenv("MULTITICKET_MATH", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    task = tasks.get("math")
    assert len(task.problems("train")) == 700 - 512
    assert len({config for name, config, _ in asked if name == "EleutherAI/hendrycks_math"}) == 7
    assert ("HuggingFaceH4/MATH-500", None, "test") in asked
