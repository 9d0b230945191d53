from __future__ import annotations

from typing import Any

import pytest

from multiticket.research.report.tables import arm_name, run_rows, with_interval

SCORES = {"pass@1": 0.6125, "interval": [0.58, 0.645], "greedy": 0.7, "greedy_interval": [0.65, 0.75]}
RESULT: dict[str, Any] = {
    "arm": "ticket",
    "method": "random",
    "density": 0.01,
    "seed": 1,
    "part": 0,
    "nnz": 10_640,
    "numel": 1_064_832,
    "file_bytes": 44_000,
    "learning_rate": 1e-2,
    "wall_s": 61.2,
    "eval": {"before": {**SCORES, "pass@1": 0.35}, "after": SCORES},
}


def test_a_row_says_what_the_result_says() -> None:
    (row,) = run_rows([RESULT])
    assert row == (
        "ticket 1 % (seed 1)",
        "35.0 %",
        "61.3 % (58.0 to 64.5)",
        "70.0 % (65.0 to 75.0)",
        "10,640 of 1,064,832",
        "44.0 kB",
        "0.01",
        "61 s",
    )


@pytest.mark.parametrize(
    ("changes", "name", "short"),
    [
        ({}, "ticket 1 % (seed 1)", "1 %, seed 1"),
        ({"arm": "full"}, "full", "full"),
        ({"density": 0.001, "part": 3}, "ticket 0.1 % (seed 1, part 3)", "0.1 %, seed 1, part 3"),
        ({"method": "columns"}, "ticket 1 % (columns, seed 1)", "1 %, columns, seed 1"),
    ],
)
def test_arms_have_names_that_tell_them_apart(changes: dict[str, Any], name: str, short: str) -> None:
    assert arm_name({**RESULT, **changes}) == name
    assert arm_name({**RESULT, **changes}, short=True) == short


def test_an_interval_is_given_in_percent() -> None:
    assert with_interval(SCORES, "greedy", "greedy_interval") == "70.0 % (65.0 to 75.0)"
