"""Runs of a few steps of a toy model, and what is compared of two of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from multiticket import config


def small(model: Path, arm: str = "ticket", **more: Any) -> config.RunConfig:
    """Seven steps, four an epoch; checkpoints, held-out scores and samples at steps of their own."""
    settings: dict[str, Any] = {
        "task": "toy_task:TASK",
        "model": str(model),
        "arm": arm,
        "learning_rate": 3e-3 if arm == "full" else 2e-2,
        "steps": 7,
        "rollouts": 40,
        "group": 4,
        "save_every": 2,
        "keep_last": 1,
        "eval": {"problems": 10, "samples": 2},
        "eval_every": 3,
        "samples_every": 2,
    }
    if arm == "ticket":
        settings["density"] = 0.1
    return config.build({**settings, **more})


def costless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` without its times and memory, which no run has twice."""
    costs = ("_s", "_peak_bytes")
    return {name: value for name, value in line.items() if name != "time" and not name.endswith(costs)}


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, without what they cost."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [costless(line) for line in lines]


def made(output: Path) -> dict[str, Any]:
    """Everything a run made that must not depend on when it was interrupted: bytes by file name, and more."""
    names = ("ticket.safetensors", "model/model.safetensors", "eval.jsonl", "samples.jsonl")
    names += ("eval-before.jsonl", "eval-after.jsonl", "config.json")
    result = json.loads((output / "result.json").read_text())
    return {
        **{name: (output / name).read_bytes() for name in names if (output / name).exists()},
        "metrics": metrics(output),
        "scores": result["eval"],
        "best": result["best_step"],
        "stopped": result["stopped"],
        "checkpoints": sorted(path.name for path in (output / "checkpoints").iterdir()),
        "hidden": sorted(path.name for path in output.glob(".*")),
    }


def digest(found: dict[str, Any]) -> dict[str, Any]:
    """What `made` gives, short: hashes in the place of bytes, and without the settings, which name their file."""
    return {
        key: hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
        for key, value in found.items()
        if key != "config.json"
    }


def kept_tensors(output: Path) -> dict[str, Tensor]:
    """What a run's ticket, whole model or adapter holds."""
    names = ("ticket.safetensors", "model/model.safetensors", "adapter/adapter_model.safetensors")
    (file,) = [output / name for name in names if (output / name).exists()]
    return load_file(file)


def apart(one: Path, other: Path) -> float:
    """The largest difference between what two runs kept, which has the same names."""
    ours, theirs = kept_tensors(one), kept_tensors(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def in_a_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process: the signal that killed it, negative, or 0 where it came to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(120)  # should it hang
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_at(owner: Any, name: str, call: int, after: bool = False) -> None:
    """From now on, the `call`-th call of `owner.name` in this process ends with SIGKILL, before or after its work."""
    original = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
