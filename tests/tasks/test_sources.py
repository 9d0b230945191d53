"""Reading problems from files, whatever is in them."""

import json
from pathlib import Path

import pytest

from multiticket.tasks.sources import read_json_lines


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "1"}\r\n\r\n{"prompt": "2"}\r\n', encoding="utf-8-sig")
    assert read_json_lines(file, ("prompt",)) == [{"prompt": "1"}, {"prompt": "2"}]


def test_half_of_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": "? \ud83d", "more": ["\udc00", {"a\ud800": 1}]}, {"prompt": "😀"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="1 of 2 lines contain half of a surrogate pair"):
        read = read_json_lines(file, ("prompt",))
    assert read == [{"prompt": "? �", "more": ["�", {"a�": 1}]}, {"prompt": "😀"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", r"line 1 is '\[1, 2\]': each line needs an object with prompt"),
        ('{"question": "?"}', "line 1 has no 'prompt', but 'question': each line needs prompt"),
        ("{}", "line 1 has no 'prompt', but nothing"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_json_lines(tmp_path / "data.jsonl", ("prompt",))
