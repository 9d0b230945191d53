"""What stands behind the @ of a task's name."""

import pytest

from multiticket.tasks.options import split_options, value_of, whole_number


@pytest.mark.parametrize(
    ("text", "first", "values"),
    [
        ("data.jsonl", "data.jsonl", {}),
        ("data.jsonl,test=t.jsonl", "data.jsonl", {"test": "t.jsonl"}),
        ("a=1,b=two words, and more,c=[1, 2]", None, {"a": "1", "b": "two words, and more", "c": "[1, 2]"}),
        (
            "datasets=[{name: chain_sum, weight: 1}],size=3",
            None,
            {"datasets": "[{name: chain_sum, weight: 1}]", "size": "3"},
        ),
        ("owner/name", "owner/name", {}),
        ("a=x=y", None, {"a": "x=y"}),
    ],
)
def test_reading(text: str, first: str | None, values: dict[str, str]) -> None:
    assert split_options(text) == (first, values)


@pytest.mark.parametrize(
    ("text", "message"), [("a=1,a=2", "given twice"), ("", "name=value"), (",a=1", "name=value")]
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_options(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("1e-3", 0.001), ("true", True), ("[a, b]", ["a", "b"]), ("words", "words")],
)
def test_values(text: str, value: object) -> None:
    assert value_of("name", text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "true", "x", "[1"])
def test_whole_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"option size (must be|cannot)"):
        whole_number("size", text)
