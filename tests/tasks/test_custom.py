"""A user's own score on their own problems."""

import json
import sys
from pathlib import Path

import pytest

from multiticket import tasks

OWN = """
def equal(completion, answer):
    return completion.strip() == answer

equal.max_completion_tokens = 7
equal.system_prompt = "Be brief."

def broken(completion, answer):
    return {"raises": 1 / 0 if completion == "raises" else 0, "two": 2, "nan": float("nan"), "none": None}[completion]

number = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scores_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores_for_test", raising=False)


def write(path: Path, first: int, last: int) -> Path:
    rows = [{"prompt": f"{n}?", "answer": str(n), "more": 1} for n in range(first, last)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_file(tmp_path: Path) -> None:
    reference = f"own_scores_for_test:equal@{write(tmp_path / 'data.jsonl', 0, 100)}"
    task = tasks.get(reference)
    assert isinstance(task, tasks.Task)
    assert (task.name, task.max_completion_tokens, task.system_prompt) == (reference, 7, "Be brief.")  # type: ignore[attr-defined]
    splits = {split: set(task.problems(split)["prompt"]) for split in tasks.SPLITS}
    assert {split: len(prompts) for split, prompts in splits.items()} == {
        "train": 80,
        "validation": 10,
        "test": 10,
    }
    assert len(set.union(*splits.values())) == 100
    assert task.score(" 3\n", "3") == 1.0
    assert task.correct("3", "3")
    assert not task.correct("4", "3")


def test_a_folder_with_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", 0, 50)
    write(tmp_path / "test.jsonl", 45, 60)
    task = tasks.get(f"own_scores_for_test:equal@{tmp_path}")
    assert len(task.problems("test")) == 15
    assert not set(task.problems("train")["prompt"]) & set(task.problems("test")["prompt"])
    assert len(task.problems("train")) + len(task.problems("validation")) == 45


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _: ["train", "test"])
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, split: [{"prompt": f"{split} {n}", "answer": name} for n in range(20)],
    )
    task = tasks.get("own_scores_for_test:equal@someone/sums")
    assert task.problems("test")[0] == {"prompt": "test 0", "answer": "someone/sums"}
    assert len(task.problems("train")) == 18


def test_a_score_that_fails_is_0_counted_and_warned_of_once(tmp_path: Path) -> None:
    task = tasks.get(f"own_scores_for_test:broken@{write(tmp_path / 'data.jsonl', 0, 10)}")
    with pytest.warns(UserWarning, match="division by zero") as warned:
        scores = [task.score(text, "") for text in ("raises", "two", "nan", "none", "missing")]
    assert scores == [0.0] * 5
    assert len(warned) == 1
    assert task.failures == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_scores_for_test:missing@data.jsonl", "Cannot load the score"),
        ("own_scores_for_test:number@data.jsonl", "is not a function"),
        ("own_scores_for_test:equal@nowhere.jsonl", "There is no file or folder nowhere.jsonl"),
        ("own_scores_for_test:equal@{folder}", r"has no train\.jsonl"),
        ("own_scores_for_test:equal", "a score function needs its problems"),
        ("arithmetic@3", "takes nothing after its name"),
    ],
)
def test_mistakes_are_said_in_one_sentence(tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.get(reference.replace("{folder}", str(tmp_path)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "?"}', "line 1 has no 'answer'"),
        ('{"prompt": "?", "answer": 3}', "needs text in the columns"),
        ("", "no problems to train on"),
    ],
)
def test_broken_problems_are_value_errors(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(row)
    with pytest.raises(ValueError, match=message):
        tasks.get(f"own_scores_for_test:equal@{tmp_path / 'data.jsonl'}").problems("train")
