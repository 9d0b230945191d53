"""Which annotations of GSM8K count as facts."""

import json
import sys
from pathlib import Path

import pytest
from gsm8k_folder import GSM8K, NO_GSM8K

import extract_arithmetic
from extract_arithmetic import evaluate, expressions


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"),
    [
        (48, "+", 24, 72),
        (3, "-", 5, -2),
        (12, "*", 12, 144),
        (48, "/", 2, 24),
        (3, "/", 2, None),
        (3, "/", 0, None),
    ],
)
def test_evaluate(left: int, operator: str, right: int, value: int | None) -> None:
    assert evaluate(left, operator, right) == value


@pytest.mark.parametrize(
    ("annotation", "fact"),
    [
        ("48/2=24", {"48/2": 24}),
        ("48 / 2 = 24", {"48/2": 24}),
        ("100-150=-50", {"100-150": -50}),
        ("007+1=8", {"7+1": 8}),
        ("999*999=998001", {"999*999": 998001}),
    ],
)
def test_facts_that_count(annotation: str, fact: dict[str, int]) -> None:
    facts, seen = expressions([f"She sold <<{annotation}>>24 clips."])
    assert facts == fact
    assert seen == set(fact)


@pytest.mark.parametrize("annotation", ["4*4=16.00", "3/2=1.5", "2+2=5", "3/0=0", "3/2=1"])
def test_expressions_that_are_seen_but_no_facts(annotation: str) -> None:
    facts, seen = expressions([f"<<{annotation}>>"])
    assert facts == {}
    assert seen == {annotation.split("=")[0]}


@pytest.mark.parametrize(
    "annotation", ["1000+1=1001", "1+2+3=6", ".5*4=2", "5%=0.05", "-3+5=2", "4*4", "", "١+١=٢"]
)
def test_annotations_of_another_form(annotation: str) -> None:
    assert expressions([f"<<{annotation}>>"]) == ({}, set())


def write_split(folder: Path, split: str, annotations: list[str]) -> None:
    lines = [json.dumps({"question": "?", "answer": f"So <<{annotation}>>."}) for annotation in annotations]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def test_what_the_test_split_has_in_any_form_leaves_the_training_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path, "train", ["1+1=2", "4*4=16", "5-3=2", "5-3=2"])
    write_split(tmp_path, "test", ["1+1=2", "4*4=16.00", "9/3=3"])
    monkeypatch.setattr(sys, "argv", ["extract", "--gsm8k", str(tmp_path), "--output", str(tmp_path / "out")])
    extract_arithmetic.main()

    def facts(split: str) -> list[str]:
        lines = (tmp_path / "out" / f"arithmetic_{split}.txt").read_text().splitlines()
        return [line for line in lines if not line.startswith("#")]

    assert facts("train") == ["5-3=2"]
    assert facts("test") == ["1+1=2", "9/3=3"]
    assert "train: 3 unique expressions, 1 after" in capsys.readouterr().out


def test_a_folder_without_gsm8k_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl does not exist: give the folder"):
        extract_arithmetic.read_solutions(tmp_path, "train")


@pytest.mark.skipif(GSM8K is None, reason=NO_GSM8K)
def test_the_shipped_facts_are_what_the_recipe_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["extract", "--gsm8k", str(GSM8K), "--output", str(tmp_path)])
    extract_arithmetic.main()
    shipped = extract_arithmetic.SHIPPED
    for file in ("arithmetic_train.txt", "arithmetic_test.txt"):
        assert (tmp_path / file).read_bytes() == (shipped / file).read_bytes()
    train, _ = expressions(extract_arithmetic.read_solutions(Path(str(GSM8K)), "train"))
    test, _ = expressions(extract_arithmetic.read_solutions(Path(str(GSM8K)), "test"))
    assert (len(train), len(test), len(train.keys() & test.keys())) == (5304, 1693, 1158)
