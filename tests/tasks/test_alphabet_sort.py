"""The alphabet_sort problems."""

import pytest

from extract_names import is_short_name, is_test_name
from multiticket import tasks
from multiticket.tasks.alphabet_sort import name_pool, sort_names, split_name
from multiticket.tasks.sorted_tags import read, wrap

TASK = tasks.get("alphabet_sort")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("AnnLee", ("Ann", "Lee")),
        ("Ann", ("Ann", "")),
        ("AnnMcCoy", ("Ann", "McCoy")),
        ("", ("", "")),
        ("annLee", ("ann", "Lee")),
    ],
)
def test_the_last_name_starts_at_the_first_capital_after_position_0(
    name: str, parts: tuple[str, str]
) -> None:
    assert split_name(name) == parts


def test_sorting_by_either_name() -> None:
    names = ["JoeKim", "AnnLee", "AnnaFox"]
    assert sort_names(names, "FIRST") == ["AnnLee", "AnnaFox", "JoeKim"]
    assert sort_names(names, "LAST") == ["AnnaFox", "JoeKim", "AnnLee"]


def test_the_pools_of_training_and_test_share_no_name() -> None:
    pools = {side: {*name_pool("first", side), *name_pool("last", side)} for side in ("train", "test")}
    assert not pools["train"] & pools["test"]
    for kind in ("first", "last"):
        for side in ("train", "test"):
            names = name_pool(kind, side)
            assert len(set(names)) == len(names) > 200
            assert all(is_short_name(name) and is_test_name(name) == (side == "test") for name in names)


@pytest.mark.parametrize(
    ("split", "count", "side"),
    [("train", 8192, "train"), ("validation", 512, "train"), ("test", 1024, "test")],
)
def test_every_answer_sorts_its_prompt(split: str, count: int, side: str) -> None:
    problems = TASK.problems(split)
    assert problems.column_names == ["prompt", "answer"]
    assert len(set(problems["prompt"])) == len(problems) == count
    requests = set()
    for prompt, answer in zip(problems["prompt"], problems["answer"], strict=True):
        request, *names, end = prompt.split("\n")
        requests.add(request)
        assert end == ""
        first, last = zip(*map(split_name, names), strict=True)
        assert len(set(first)) == len(set(last)) == 3
        assert set(first) <= set(name_pool("first", side))
        assert set(last) <= set(name_pool("last", side))
        key = first if request == "Sort by FIRST:" else last
        assert answer == wrap([name for _, name in sorted(zip(key, names, strict=True))])
    assert requests == {"Sort by FIRST:", "Sort by LAST:"}


def test_no_problem_is_in_two_splits() -> None:
    train, validation, test = (set(TASK.problems(split)["prompt"]) for split in tasks.SPLITS)
    assert not train & validation
    assert not (train | validation) & test


def test_the_first_test_problem_never_changes() -> None:
    problem = TASK.problems("test")[0]
    assert problem["prompt"] == "Sort by FIRST:\nIgorSant\nChusOnio\nYlvaVogt\n"
    assert read(problem["answer"]) == ["ChusOnio", "IgorSant", "YlvaVogt"]


def test_accuracy_is_exact_where_the_reward_is_not() -> None:
    answer = wrap(["AnnLee", "BobRay"])
    assert TASK.correct("thus\n" + answer + "\n", answer)
    assert TASK.score(answer.lower(), answer) == 1.0
    assert not TASK.correct(answer.lower(), answer)
    for wrong in (
        "",
        wrap([]),
        wrap(["BobRay", "AnnLee"]),
        wrap(["AnnLee"]),
        wrap(["AnnLee", "BobRay", "CyFox"]),
    ):
        assert not TASK.correct(wrong, answer)
        assert TASK.score(wrong, answer) < 1.0


def test_an_unknown_split_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="Unknown split"):
        TASK.problems("all")
