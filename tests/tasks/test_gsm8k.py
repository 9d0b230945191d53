"""GSM8K: its splits, and its own reference answers as a check of the verifier."""

import itertools
import json
import re
from pathlib import Path

import pytest
from gsm8k_folder import GSM8K, NO_GSM8K

from multiticket import tasks
from multiticket.tasks.gsm8k import VALIDATION_PROBLEMS

needs_gsm8k = pytest.mark.skipif(GSM8K is None, reason=NO_GSM8K)


def write(folder: Path, split: str, count: int, first: int = 0) -> None:
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1:,}"}
        for n in range(first, first + count)
    ]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train", 1100)
    write(tmp_path, "test", 20, first=1090)
    return tmp_path


def test_a_folder_of_the_original_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.get(f"gsm8k@{folder}")
    assert task.name == "gsm8k"
    test = task.problems("test")
    assert test[0] == {"prompt": "What is 1090 + 1?", "answer": "1,091"}
    train, validation = set(task.problems("train")["prompt"]), set(task.problems("validation")["prompt"])
    assert len(validation) == VALIDATION_PROBLEMS
    assert len(train) == 1100 - VALIDATION_PROBLEMS - 10  # ten of the training problems are test problems
    assert not train & validation
    assert not (train | validation) & set(test["prompt"])
    monkeypatch.setenv("MULTITICKET_GSM8K", str(folder))
    assert tasks.get("gsm8k").problems("validation")["prompt"] == task.problems("validation")["prompt"]


def test_what_is_held_out_does_not_depend_on_the_order(folder: Path) -> None:
    before = set(tasks.get(f"gsm8k@{folder}").problems("validation")["prompt"])
    file = folder / "train.jsonl"
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert set(tasks.get(f"gsm8k@{folder}").problems("validation")["prompt"]) == before


def test_scores() -> None:
    task = tasks.get("gsm8k@" + str(GSM8K)) if GSM8K else None
    if task is None:
        pytest.skip(NO_GSM8K)
    assert task.score("So it is\n#### 1,234", "1234") == 1.0
    assert task.score(r"So it is $\boxed{\$1234.00}$.", "1,234") == 1.0
    for wrong in (
        "1234",
        r"\boxed{1234} or \boxed{1235}",
        r"\boxed{1234",
        "#### 12345",
        "",
        "#### 1234 or 1235",
    ):
        assert task.score(wrong, "1234") == 0.0
    assert task.failures == 0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "test.jsonl",
            None,
            r"test\.jsonl does not exist: give a folder with train\.jsonl and test\.jsonl as gsm8k@",
        ),
        ("test.jsonl", "{", r"test\.jsonl, line 1 is not JSON"),
        (
            "test.jsonl",
            '{"question": "?"}',
            "line 1 has no 'answer', but 'question': each line needs question",
        ),
        ("test.jsonl", '{"question": "?", "answer": "18"}', "no final answer in the reference solution '18'"),
    ],
)
def test_broken_folders_are_value_errors(folder: Path, file: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        tasks.get(f"gsm8k@{folder}").problems("test")


def test_without_a_folder_and_without_the_hub_one_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.delenv("MULTITICKET_GSM8K", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        ValueError,
        match=r"Cannot load test of the data set 'openai/gsm8k' \(the reason given was: no network\): give a fol",
    ):
        tasks.get("gsm8k").problems("test")


@needs_gsm8k
def test_all_reference_solutions_score_1_against_themselves_and_0_with_a_changed_number() -> None:
    task = tasks.get(f"gsm8k@{GSM8K}")
    seen = 0
    for split in ("train", "test"):
        for line in (GSM8K / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():  # type: ignore[operator]
            solution = json.loads(line)["answer"]
            answer = solution.rpartition("####")[2].strip()
            boxed = rf"Therefore $\boxed{{{answer}}}$."
            assert task.score(solution, answer) == task.score(boxed, answer) == 1.0
            digit = re.search(r"[0-9]", answer)
            assert digit is not None
            other = answer[: digit.start()] + str((int(digit[0]) + 1) % 10) + answer[digit.end() :]
            for changed in (other, answer + "1", f"{answer} or {other}"):
                assert task.score(solution.rpartition("####")[0] + "#### " + changed, answer) == 0.0
                assert task.score(rf"$\boxed{{{changed}}}$", answer) == 0.0
            seen += 1
    assert seen == 8792
    assert task.failures == 0


@needs_gsm8k
def test_no_reference_equals_its_neighbour() -> None:
    task = tasks.get(f"gsm8k@{GSM8K}")
    for split in ("train", "test"):
        answers = sorted(set(task.problems(split)["answer"]))
        for one, other in itertools.pairwise(answers):
            same = float(one.replace(",", "")) == float(other.replace(",", ""))
            assert task.correct(rf"\boxed{{{other}}}", one) is same
    assert task.failures == 0


@needs_gsm8k
def test_the_splits_of_the_real_text() -> None:
    task = tasks.get(f"gsm8k@{GSM8K}")
    sizes = {split: len(task.problems(split)) for split in tasks.SPLITS}
    assert sizes == {"train": 6961, "validation": 512, "test": 1319}
    assert task.problems("test")[0]["answer"] == "18"
