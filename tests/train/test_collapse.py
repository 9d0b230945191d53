"""What counts as a collapse: pure functions over the lines of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import metrics, small
from transformers import TrainerCallback

from multiticket.config import CollapseConfig
from multiticket.ticket import Ticket
from multiticket.train import session
from multiticket.train.collapse import collapse, suspect_since
from multiticket.train.run import run_training

BOUNDS = CollapseConfig()
HEALTHY = {
    "reward": 0.5,
    "kl": 0.004,
    "loss": 0.0,
    "grad_norm": 0.1,
    "completion_length": 3.0,
    "truncated": 0.0,
}


def _lines(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**HEALTHY, "step": step, **change} for step, change in enumerate(changes, start=1)]


@pytest.mark.parametrize(
    ("change", "needed", "says"),
    [
        ({"kl": 0.6}, BOUNDS.kl_steps, "nats a token"),
        ({"truncated": 1.0, "reward": 0.2}, BOUNDS.length_steps, "cut off"),
        ({"completion_length": 1.0, "reward": 0.1}, BOUNDS.length_steps, "empty"),
        ({"reward": 0.0}, BOUNDS.reward_steps, "got any reward"),
        ({"grad_norm": float("nan")}, 1, "not finite"),
        ({"loss": float("inf")}, 1, "not finite"),
    ],
)
def test_a_collapse_is_certain_after_enough_steps_and_not_before(
    change: dict[str, Any], needed: int, says: str
) -> None:
    healthy: list[dict[str, Any]] = [{}] * 7
    assert collapse(_lines(*healthy, *[change] * (needed - 1)), BOUNDS) is None
    found = collapse(_lines(*healthy, *[change] * needed), BOUNDS)
    assert found is not None
    assert (found.step, found.since) == (7 + needed, 8)
    assert says in found.reason
    assert suspect_since(_lines(*healthy, change), BOUNDS) == 8
    assert suspect_since(_lines(*healthy), BOUNDS) is None
    # one healthy step in between, and the count begins anew
    broken = [*[change] * (needed - 1), {}, *[change] * (needed - 1)]
    assert collapse(_lines(*healthy, *broken), BOUNDS) is None


numbers = st.fixed_dictionaries(
    {
        "reward": st.floats(0.01, 1),
        "kl": st.one_of(st.none(), st.floats(0, 0.15)),
        "loss": st.floats(-1, 1),
        "grad_norm": st.one_of(st.none(), st.floats(0, 100)),
        "completion_length": st.floats(2, 100),
        "truncated": st.floats(0, 0.98),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, max_size=60))
def test_runs_within_the_bounds_never_stop(changes: list[dict[str, Any]]) -> None:
    lines = _lines(*changes)
    assert all(collapse(lines[:upto], BOUNDS) is None for upto in range(len(lines) + 1))
    assert suspect_since(lines, BOUNDS) is None


TEN_TIMES_TOO_FAST = [
    0.587,
    0.551,
    0.228,
    0.235,
    0.159,
    0.173,
    0.205,
    0.083,
    0.069,
    0.128,
    0.178,
    0.162,
    0.081,
    0.099,
]
"""KL of the first steps of arithmetic with the shipped base, 512 rollouts, a 1 % ticket at a rate of 0.1 (the default
is 0.01): the reward stays where it was."""


def test_a_rate_ten_times_too_high_is_noticed_and_one_three_times_too_high_is_not() -> None:
    found = collapse(_lines(*({"kl": kl} for kl in TEN_TIMES_TOO_FAST[:5])), BOUNDS)
    assert found is not None
    assert found.since == 1
    assert collapse(_lines(*[{"kl": 0.043}] * 100), BOUNDS) is None


def test_answers_that_are_always_cut_off_are_no_collapse_while_they_earn_rewards() -> None:
    rising = [{"truncated": 1.0, "reward": 0.3 + 0.005 * step} for step in range(100)]
    assert collapse(_lines(*rising), BOUNDS) is None


def test_no_lines_are_no_collapse() -> None:
    assert collapse([], BOUNDS) is None
    assert suspect_since([], BOUNDS) is None


STOPS: dict[str, Any] = {
    "collapse": {"kl": 0.5, "kl_steps": 2},
    "steps": 12,
    "save_every": 1,
    "keep_last": 1,
    "eval_every": None,
}


class _TooFast(TrainerCallback):
    """From step 4 on, a rate that no model survives."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= 3:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = 3.0


@pytest.fixture(scope="module")
def collapsed(
    toy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run that is healthy for three steps."""
    output = tmp_path_factory.mktemp("collapse") / "run"
    run_training(small(toy_model_folder, **{**STOPS, "steps": 3}), output, show_progress=False)
    shutil.copytree(output, output.with_name("healthy"))
    watch = session.Session.watch

    def watch_and_hurry(self: Any) -> None:
        watch(self)
        self.trainer.add_callback(_TooFast())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "watch", watch_and_hurry)
        return output, run_training(
            small(toy_model_folder, **STOPS), output, resume=True, show_progress=False
        )


def test_a_collapse_stops_the_run_and_keeps_the_ticket_from_before(
    collapsed: tuple[Path, dict[str, Any]],
) -> None:
    output, result = collapsed
    stopped = result["stopped"]
    assert stopped["step"] < 12
    assert len(metrics(output)) == stopped["step"]
    kept = stopped["kept_step"]
    assert kept == stopped["since"] - 1 == 3
    healthy = Ticket.load(output.with_name("healthy") / "ticket.safetensors")
    ticket = Ticket.load(output / "ticket.safetensors")
    for name, values in healthy.sections[0].values.items():
        assert ticket.sections[0].values[name].equal(values)
    assert (ticket.provenance["steps"], ticket.provenance["stopped"]) == (kept, stopped)
    assert (output / "checkpoints" / f"step-{kept}").is_dir(), (
        "kept although only the newest one was asked for"
    )


def test_a_collapsed_run_is_resumed_only_when_asked(
    collapsed: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    output, result = collapsed
    with pytest.raises(ValueError, match="--no-stop-on-collapse"):
        run_training(small(toy_model_folder, **STOPS), output, resume=True, show_progress=False)
    copy = tmp_path / "run"
    shutil.copytree(output, copy)
    asked = small(
        toy_model_folder, **{**STOPS, "steps": result["stopped"]["step"] + 1}, stop_on_collapse=False
    )
    assert run_training(asked, copy, resume=True, show_progress=False)["stopped"] is None
    assert len(metrics(copy)) == result["stopped"]["step"] + 1


def test_a_run_killed_after_its_collapse_comes_to_the_same_end(
    collapsed: tuple[Path, dict[str, Any]], toy_model_folder: Path, tmp_path: Path
) -> None:
    output, result = collapsed
    copy = tmp_path / "run"
    shutil.copytree(output, copy)
    (copy / "result.json").unlink()
    (copy / "ticket.safetensors").unlink()
    again = run_training(small(toy_model_folder, **STOPS), copy, resume=True, show_progress=False)
    assert (again["stopped"], again["eval"]) == (result["stopped"], result["eval"])
    assert (copy / "ticket.safetensors").read_bytes() == (output / "ticket.safetensors").read_bytes()
    assert json.loads((copy / "result.json").read_text())["stopped"] == result["stopped"]
