"""The files of a run folder (JSON lines that are cut back, checkpoints that are kept or not), and trackers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers.integrations.integration_utils as integrations
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import small
from transformers import TrainerCallback

from multiticket import config
from multiticket.runs import trackers
from multiticket.runs.checkpoints import Checkpoints
from multiticket.runs.lines import StepLines
from multiticket.train.run import run_training

texts = st.text(max_size=20)


@settings(max_examples=25, deadline=None)  # each line waits for the disk
@given(
    steps=st.lists(st.integers(1, 9), max_size=8).map(sorted),
    text=texts,
    torn=st.binary(max_size=12).filter(lambda junk: b"\n" not in junk),
    cut=st.integers(0, 10),
)
def test_what_is_not_cut_stays_byte_for_byte(steps: list[int], text: str, torn: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = StepLines(Path(folder) / "lines.jsonl")
        records = [{"step": step, "text": text} for step in steps]
        for record in records:
            lines.append(record)
        whole = lines.path.read_bytes() if records else b""
        if records:
            lines.path.write_bytes(whole + torn)
        assert [line["step"] for line in lines.read()] == steps
        lines.cut_after(cut)
        kept = sum(step <= cut for step in steps)
        left = lines.path.read_bytes() if records else b""
        assert left == b"".join(whole.splitlines(keepends=True)[:kept])
        lines.append({"step": 10})
        assert [line["step"] for line in lines.read()] == [*steps[:kept], 10]


def _with_steps(folder: Path, steps: list[int]) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.of(step).mkdir(parents=True)
        (checkpoints.of(step) / "state").write_text(str(step))
    return checkpoints


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(1, 30), unique=True, min_size=1, max_size=8),
    keep_last=st.integers(1, 4),
    best=st.none() | st.integers(1, 30),
    suspect=st.none() | st.integers(1, 30),
)
def test_pruning_keeps_the_last_the_best_and_the_last_healthy_one(
    steps: list[int], keep_last: int, best: int | None, suspect: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = _with_steps(Path(folder), steps)
        checkpoints.prune(keep_last, best, suspect)
        healthy = [step for step in steps if suspect is not None and step < suspect]
        expected = {*sorted(steps)[-keep_last:], *({best} & set(steps)), *([max(healthy)] if healthy else [])}
        assert checkpoints.steps() == sorted(expected)
        assert sorted(path.name for path in Path(folder).iterdir()) == sorted(f"step-{s}" for s in expected)


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    checkpoints = _with_steps(tmp_path, [2])
    (tmp_path / "step-x").mkdir()  # somebody else's
    partial = checkpoints.partial(4)
    (partial / "inner").mkdir(parents=True)
    (partial / "inner" / "state").write_text("4")
    assert (checkpoints.last(), checkpoints.last(before=2)) == (2, None)
    checkpoints.finish(4, partial / "inner")
    assert checkpoints.last() == 4
    assert (checkpoints.of(4) / "state").read_text() == "4"
    checkpoints.partial(6).mkdir()
    checkpoints.remove_partial()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4", "step-x"]


class _Recorder(TrainerCallback):
    """In a tracker's place: what transformers would send there."""

    sent: list[dict[str, Any]]
    arguments: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        type(self).arguments, type(self).sent = args, []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.sent.append(dict(logs))


def test_metrics_go_to_the_trackers_asked_for(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    monkeypatch.setenv("HF_TOKEN", "hf_another_secret")
    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, "trackio", _Recorder)
    monkeypatch.setitem(trackers._INSTALLED, "trackio", lambda: True)
    asked = small(toy_model_folder, steps=2, eval_every=None, report_to="trackio")
    run_training(asked, tmp_path / "my-run", show_progress=False)
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "my-run" / "metrics.jsonl").open()]
    assert [logs["reward"] for logs in _Recorder.sent if "reward" in logs] == rewards
    assert (_Recorder.arguments.run_name, _Recorder.arguments.project) == ("my-run", "multiticket")
    told = json.dumps(_Recorder.arguments.to_dict(), default=str)
    files = [path.read_bytes() for path in (tmp_path / "my-run").rglob("*") if path.is_file()]
    for secret in ("a-very-secret-key", "hf_another_secret"):
        assert secret not in told
        assert not any(secret.encode() in content for content in files)


def test_a_tracker_that_is_missing_or_unknown_is_refused(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._INSTALLED, "wandb", lambda: False)
    asked = small(toy_model_folder, report_to="wandb, trackio")
    assert asked.report_to == ("wandb", "trackio")
    with pytest.raises(ValueError, match="wandb is not installed: pip install wandb"):
        run_training(asked, tmp_path / "run", show_progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"report_to.* should be 'wandb' or 'trackio'"):
        config.build({"report_to": "mlflow"})


def test_the_folder_of_a_run_is_read_without_torch() -> None:
    code = (
        "import sys, multiticket.runs.folder as f; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
