"""A user's own score on their own problems."""

import json
import sys
from pathlib import Path

import pytest

from multiticket import tasks
from multiticket.tasks import judging

OWN = """
def equal(completion, answer):
    return completion.strip() == answer

equal.max_completion_tokens = 7
equal.system_prompt = "Be brief."

def broken(completion, answer):
    return {"raises": 1 / 0 if completion == "raises" else 0, "two": 2, "nan": float("nan"), "none": None,
            "text": "1.0"}[completion]

def seen(completion, answer, metadata):
    return float(completion == answer == str(metadata["n"]))

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


def test_files_for_each_split_and_other_options(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.jsonl", 0, 40), write(tmp_path / "b.jsonl", 35, 60)
    options = (
        "max_completion_tokens=9,system_prompt=Think, then answer.,prompt_template=Q: {prompt},timeout=2.5"
    )
    task = tasks.get(f"own_scores_for_test:equal@{train},test={test},{options}")
    assert task.max_completion_tokens == 9
    assert task.system_prompt == "Think, then answer."  # type: ignore[attr-defined]
    assert task.prompt_template == "Q: {prompt}"  # type: ignore[attr-defined]
    assert {split: len(task.problems(split)) for split in tasks.SPLITS} == {
        "train": 31,
        "validation": 4,
        "test": 25,
    }
    assert not set(task.problems("train")["prompt"]) & set(task.problems("test")["prompt"])
    named = tasks.get(f"own_scores_for_test:equal@train={train},test={test},validation={test}")
    assert len(named.problems("train")) == 35
    assert tasks.before_a_run(named, "test", None)[0] == "35 train, 25 validation, 25 test problems."


def test_the_splits_are_said_and_what_decides_little(tmp_path: Path) -> None:
    task = tasks.get(f"own_scores_for_test:equal@{write(tmp_path / 'data.jsonl', 0, 40)}")
    sizes, warning = tasks.before_a_run(task, "test", None)
    assert sizes.startswith(
        "32 train, 4 validation, 4 test problems (validation and test cut from train by a hash"
    )
    assert warning.startswith("With 4 test problems a 95 % interval around 50 % reaches 49 points")
    assert tasks.before_a_measurement(task, "test", None)[0].startswith(
        "4 test problems (test cut from train"
    )
    many = tasks.get(f"own_scores_for_test:equal@{write(tmp_path / 'data.jsonl', 0, 400)}")
    assert len(tasks.before_a_run(many, "test", None)) == 1


def test_numbers_as_answers_message_lists_as_prompts_and_metadata(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+3?"}]
    rows = [{"prompt": f"{n}?", "answer": n, "metadata": {"n": n}} for n in range(20)]
    rows += [{"prompt": messages, "answer": 5.0}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.get(f"own_scores_for_test:seen@{tmp_path / 'data.jsonl'}")
    found = {p.prompt: p for split in tasks.SPLITS for p in judging.rows(task.problems(split))}
    assert found["7?"] == tasks.Problem("7?", "7", {"n": 7})
    assert found[json.dumps(messages)].answer == "5.0"
    assert tasks.judge(task, [["7"]], [found["7?"]]) == [tasks.Judgement(1.0, True)]


def test_a_score_that_fails_is_0_counted_and_shown_once_with_its_own_traceback(tmp_path: Path) -> None:
    task = tasks.get(f"own_scores_for_test:broken@{write(tmp_path / 'data.jsonl', 0, 10)}")
    with pytest.warns(UserWarning, match="division by zero") as warned:
        scores = [task.score(text, "") for text in ("raises", "two", "nan", "none", "text", "missing")]
    assert scores == [0.0] * 6
    assert len(warned) == 1
    assert Path(warned[0].filename).name == "own_scores_for_test.py"
    assert "in broken" in str(warned[0].message)
    assert "multiticket" not in str(warned[0].message).split("Traceback")[1]
    assert task.failures == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_scores_for_test:missing@data.jsonl", "Cannot load the score"),
        ("own_scores_for_test:number@data.jsonl", "is not a function"),
        ("own_scores_for_test:equal@nowhere.jsonl", "There is no file or folder nowhere.jsonl"),
        ("own_scores_for_test:equal@{folder}", r"has no train\.jsonl"),
        ("own_scores_for_test:equal", "a score function needs its problems"),
        ("arithmetic@3", "takes no options"),
        (
            "own_scores_for_test:equal@{folder}/x.jsonl,tset=b",
            "has no option 'tset'; its options are train, ",
        ),
        ("own_scores_for_test:equal@test=b.jsonl", "has no problems to train on"),
        ("own_scores_for_test:equal@a.jsonl,train=b.jsonl", "gives its training problems twice"),
        ("own_scores_for_test:equal@a/b,timeout=0", "timeout must be a number above 0"),
        (
            "own_scores_for_test:equal@a/b,max_completion_tokens=x",
            "must be a whole number of at least 1, not 'x'",
        ),
    ],
)
def test_mistakes_are_said_in_one_sentence(tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.get(reference.replace("{folder}", str(tmp_path)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "?"}', "line 1 has no 'answer'"),
        (
            '{"prompt": "?", "answer": null}',
            r"problem 1 needs text in the columns .* its answer is null \(null or",
        ),
        ('{"prompt": "?", "answer": [5]}', r"its answer is \[5\] \(a list\)"),
        ('{"prompt": 5, "answer": "5"}', r"its prompt is 5 \(int\)"),
        ('{"prompt": [], "answer": "5"}', "a list of messages must end with the user's"),
        (
            '{"prompt": [{"role": "user"}], "answer": "5"}',
            r"a message needs a text role and content, but one is \{",
        ),
        ('{"prompt": "?", "answer": "5", "metadata": 3}', r"metadata is an object, not 3 \(int\)"),
        ('{"prompt": "?", "answer": 3}', "too few problems to cut a test"),
        ("", "no problems to train on"),
    ],
)
def test_broken_problems_are_value_errors(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(row)
    with pytest.raises(ValueError, match=message):
        tasks.get(f"own_scores_for_test:equal@{tmp_path / 'data.jsonl'}").problems("train")
