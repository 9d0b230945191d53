"""What test_many_processes.py judges: whole runs by two processes, which meet as a launcher has them meet."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from small_runs import digest, made, small
from told_rollouts import GIVEN, given, told, told_calls, with_tools
from toy_task import CopyLetter
from two_ranks import Figures, serve

from multiticket.runs.checkpoints import Checkpoints
from multiticket.runs.lines import StepLines
from multiticket.sparse import choose_path
from multiticket.tasks.own_scores import OwnScores
from multiticket.train import saving
from multiticket.train.callbacks.interrupt import RunInterrupted
from multiticket.train.run import run_training
from multiticket.train.trainer import RLVRTrainer

FOLDER, RANK, MODEL = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[1]) / "base"


def run(name: str, resume: bool = False, model: Path = MODEL, **settings: Any) -> Figures:
    """A run to its end, as both processes have it."""
    result = run_training(small(model, **settings), FOLDER / name, resume=resume, show_progress=False)
    return {"result": result, "made": digest(made(FOLDER / name))}


def cut_short(name: str, fault: Any, **settings: Any) -> Figures:
    """A run that `fault` ends, what it raised and left, and what it comes to when it goes on."""
    with fault:
        try:
            run_training(small(MODEL, **settings), FOLDER / name, show_progress=False)
            raised: BaseException | None = None
        except (ValueError, RunInterrupted) as error:
            raised = error
    left = Checkpoints(FOLDER / name / "checkpoints").last()
    return {
        "raised": type(raised).__name__,
        "says": str(raised),
        "code": getattr(raised, "code", None),
        "left": left,
        **run(name, resume=True, **settings),
    }


@contextmanager
def fails_at(owner: Any, name: str, rank: int, call: int, error: Callable[[], None]) -> Iterator[None]:
    """On one rank, a call of `owner.name` does `error` first; counted from 1."""
    whole, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if rank == RANK and calls == call:
            error()
        return whole(*args, **kwargs)

    with mock.patch.object(owner, name, failing):
        yield


def disk_is_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_cannot_save() -> None:
    raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed")


def sends(signum: int) -> Callable[[], None]:
    return partial(signal.raise_signal, signum)


def collapses() -> Figures:
    strict = {"kl_per_token": 1e-9, "kl_steps": 3}
    return run("collapse", collapse=strict)


def score_fails() -> Figures:
    """One process cannot judge its completions."""

    def mistake() -> None:
        raise ValueError("from a library")

    try:
        with fails_at(OwnScores, "__call__", 1, 2, mistake):
            run_training(small(MODEL), FOLDER / "score", show_progress=False)
    except Exception as error:
        return {"raised": type(error).__name__, "says": str(error)}
    return {"raised": None}


def on_given_rollouts(arm: str, optim: str) -> Figures:
    with told(RANK):
        return run(f"given-{arm}-{optim}", **given(arm, optim))


def on_given_calls() -> Figures:
    with told_calls(RANK):
        return run("given-tools", model=FOLDER / "caller", **with_tools(FOLDER))


def with_an_accelerator(name: str) -> Figures:
    """What `attach` chooses where the model may move to an accelerator, and what that learns from given rollouts."""
    paths: set[str] = set()
    make_optimizer = RLVRTrainer.create_optimizer

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        paths.add(self.attachment.path)
        return make_optimizer(self, *args, **kwargs)

    with (
        mock.patch.object(choose_path, "_may_move_to_an_accelerator", return_value=True),
        mock.patch.object(RLVRTrainer, "create_optimizer", watched),
        told(RANK),
    ):
        return {**run(name, **given("ticket", "sgd")), "paths": sorted(paths)}


if __name__ == "__main__":
    os.environ |= {"WORLD_SIZE": "2", "RANK": sys.argv[2], "LOCAL_RANK": sys.argv[2], "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    serve(
        {
            "whole": partial(run, "whole"),
            "again": partial(run, "again"),
            "unsaved": partial(run, "unsaved", save_every=None),
            "micro": partial(run, "micro", micro_batch=10, steps=3),
            "signal while generating": lambda: cut_short(
                "generating", fails_at(RLVRTrainer, "sample", 1, 3, sends(signal.SIGTERM))
            ),
            "signal in a pass": lambda: cut_short(
                "pass", fails_at(RLVRTrainer, "loss", 0, 4, sends(signal.SIGINT)), save_every=None
            ),
            "signal after a pass": lambda: cut_short(
                "after", fails_at(RLVRTrainer, "after_step", 1, 3, sends(signal.SIGTERM)), save_every=None
            ),
            "signal while measuring": lambda: cut_short(
                "measuring", fails_at(CopyLetter, "correct", 1, 3, sends(signal.SIGTERM))
            ),
            "no room for a line": lambda: cut_short(
                "line", fails_at(StepLines, "append", 0, 13, disk_is_full)
            ),
            "no room for values": lambda: cut_short(
                "values", fails_at(saving, "save_values", 0, 2, disk_is_full)
            ),
            "no room for a state": lambda: cut_short(
                "state", fails_at(torch, "save", 1, 2, torch_cannot_save)
            ),
            "collapse": collapses,
            "score fails": score_fails,
            "given accelerator": partial(with_an_accelerator, "given-accelerator"),
            "turns": partial(run, "turns", task="toy_turns:TASK", steps=3),
            "tools": partial(run, "tools", model=FOLDER / "caller", **with_tools(FOLDER)),
            "given tools": on_given_calls,
            "auto": partial(run, "auto", learning_rate="auto"),
            "finished": partial(run, "whole", resume=True),
            "more steps": partial(run, "again", resume=True, steps=8),
            **{f"given {arm} {optim}": partial(on_given_rollouts, arm, optim) for arm, optim in GIVEN},
        }
    )
