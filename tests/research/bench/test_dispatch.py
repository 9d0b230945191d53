"""Calls by number, and what the measurement of dispatch hands back; never how long anything took."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from multiticket.cli import main
from multiticket.research.bench import dispatch
from multiticket.research.bench.dispatch import ARMS, PHASES, SHAPE, PreparedArm, count_calls
from multiticket.research.report.tables import markdown
from multiticket.sparse import watching

SMALL = replace(SHAPE, layers=2)
NAMES = ("floor", "full", "ticket", "direct")


def quiet(line: str) -> None:
    pass


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", "--dispatch", *arguments])
    return int(end.value.code or 0)


def test_calls_by_number() -> None:
    def one() -> None:
        len(())

    def two() -> None:
        one()
        one()

    before = sys.getprofile()
    assert [count_calls(function) for function in (lambda: None, one, two)] == [0, 1, 4]
    assert sys.getprofile() is before


def test_a_function_that_fails_leaves_no_profile_behind() -> None:
    before = sys.getprofile()
    with pytest.raises(ZeroDivisionError):
        count_calls(lambda: 1 // 0)
    assert sys.getprofile() is before


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return dispatch.run(3, False, quiet, NAMES, SMALL)


def test_the_ratios_are_those_of_the_rounds(measured: dict[str, Any]) -> None:
    assert {key for key in measured if key.endswith("_over_full")} == {
        "floor_over_full",
        "ticket_over_full",
        "direct_over_full",
        "compiled_over_full",
    }
    assert measured["compiled_over_full"] is None
    for name in ("floor", "ticket", "direct"):
        over = measured["arms"][name]["over_full"]
        assert measured[f"{name}_over_full"] == over["median"]
        assert over["interval"][0] <= over["median"] <= over["interval"][1]
    assert "over_full" not in measured["arms"]["full"]
    assert all({*fields["seconds"]} == {*PHASES} for fields in measured["arms"].values())


def test_the_calls_tell_the_paths_apart(measured: dict[str, Any]) -> None:
    calls = measured["calls"]
    assert {*calls} == {*NAMES}
    assert all({*by_phase} == {*PHASES} for by_phase in calls.values())
    assert calls["floor"]["step"] == 0
    for phase in PHASES:
        assert calls["ticket"][phase] < calls["direct"][phase]
    assert calls["ticket"]["step"] < calls["full"]["step"]  # one parameter where full training has 27
    assert calls["ticket"]["forward"] < 1.3 * calls["full"]["forward"]
    assert calls["direct"]["forward"] < 5 * calls["full"]["forward"]
    assert calls["direct"]["step"] < 6 * calls["full"]["step"]


def test_an_arm_is_not_charged_for_the_attachments_beside_it(measured: dict[str, Any]) -> None:
    alone = PreparedArm(ARMS["full"], SMALL)
    assert alone.calls() == measured["calls"]["full"]
    assert alone.calls() == alone.calls()


def test_only_the_named_attachments_watch_optimizers() -> None:
    first, second = (PreparedArm(ARMS["ticket"], SMALL) for _ in range(2))
    mine, other = (
        watching.attachments_of(s._one_step.optimizer.param_groups[0]["params"]) for s in (first, second)
    )
    assert len(mine) == len(other) == 1
    with watching.watched_by(mine):
        assert {*mine} <= {*watching._attachments}
        assert not {*other} & {*watching._attachments}
    with watching.watched_by([]):
        assert not watching._hooks
        assert not watching._attachments
    assert {*mine, *other} <= {*watching._attachments}
    assert len(watching._hooks) == 2


def test_full_training_and_the_ticket_are_compiled_a_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    result = dispatch.run(1, True, quiet, ("full", "ticket"), SMALL)
    assert compiled == ["Qwen2DecoderLayer"] * 2 * SMALL.layers
    assert result["compiled_over_full"] == result["compiled"]["ticket"]["over_full"]["median"]
    rows = markdown(dispatch.table(result)).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| full",
        "| ticket",
        "| full, layers compiled",
        "| ticket, layers compiled",
    ]


def test_from_the_command_line_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rounds", "1", "--no-compile", "--json", "-") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert {*result["calls"]} == {*ARMS} == {*result["arms"]}
    assert {f"{name}_over_full" for name in ARMS if name != "full"} | {"compiled_over_full"} <= {*result}
    assert "round 1 of 1" in err
    assert result["command"].startswith("multiticket")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--width", "128"], "--dispatch measures its own model; remove --width."),
        (["--sweep", "density"], "remove --sweep."),
        (["--rounds", "0"], "The number of --rounds must be at least 1, but is 0."),
        (["--json", "absent/cost.json"], "There is no folder absent"),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
