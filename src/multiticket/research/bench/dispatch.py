"""What a step costs before any arithmetic: the Python and C calls that dispatch it, and their time over full's.

The model is so small (24 layers, width 64, 8 tokens) that its step is dispatch and little else. On a GPU, where kernels
run while Python prepares the next, that is what a small model's step waits for; here it is seen without one. All arms
live in one process on one CPU thread and take steps in turn, in a new random order each round. Times are those of the
thread, so that other processes count little; calls are counted in steps of their own, which are not timed.

The ticket and the columns are attached by ``hooks``, the path of accelerators; ``direct`` is that of CPUs. How many
values an arm trains does not matter here, and is not the same.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import Any

from multiticket.arms import facts
from multiticket.research.bench.shapes import Shape
from multiticket.research.bench.spread import ratio, spread
from multiticket.research.bench.step_cost import ratio_text
from multiticket.research.bench.timed_arms import ADAPTERS, FLOOR, Arm
from multiticket.research.bench.timed_process import Step, StepSetup, build_model, prepare
from multiticket.research.study.page_section import Entry, Table

SHAPE = Shape(layers=24, width=64, inner=128, heads=4, key_value_heads=2, vocabulary=256)
BATCH, TOKENS = 1, 8
DENSITY = 0.02
"""Of tickets: one value in a norm of 64."""
REFERENCE = "full"
"""The arm that the others are compared with."""
ARMS = {
    FLOOR: Arm(FLOOR, FLOOR),
    REFERENCE: Arm(REFERENCE, REFERENCE),
    "ticket": Arm("ticket", "hooks", density=DENSITY),
    "direct": Arm("ticket, direct path", "direct", density=DENSITY),
    "columns": Arm("columns", "hooks-columns", density=DENSITY),
    **{name: Arm(facts.ARMS[name].title(rank=1), name, rank=1) for name in ADAPTERS},
}
COMPILED = (REFERENCE, "ticket")
"""Arms that are measured with each of their layers under ``torch.compile`` too."""
PHASES = ("forward", "backward", "step")
WARM_UP = 4


def run(
    rounds: int,
    compiled: bool,
    say: Callable[[str], None],
    names: Sequence[str] = tuple(ARMS),
    shape: Shape = SHAPE,
) -> dict[str, Any]:
    """Count calls and measure time.

    Args:
        rounds: steps of each arm that are timed.
        compiled: whether the arms of ``COMPILED`` are measured compiled too, in rounds of their own.
        say: takes progress, a line at a time.
        names: some of ``ARMS``, ``full`` among them.
        shape: of the model.

    Returns:
        For each arm but full ``ARM_over_full``, the median over rounds of the ratio of two steps' times;
        ``compiled_over_full`` likewise, of the compiled ticket over compiled full training, or None; ``calls`` by arm
        and phase; and ``arms`` and ``compiled``, where each ratio has its 95 % interval and each phase its time in
        seconds (median and quartiles).

    Raises:
        ValueError: fewer than one round, or nothing to compile with.
    """
    if rounds < 1:
        raise ValueError(f"The number of --rounds must be at least 1, but is {rounds}.")
    with _one_thread():
        prepared = _prepare_arms(names, shape, say)
        say("counting calls")
        calls = {name: arm.calls() for name, arm in prepared.items()}
        arms = _compare(_take_turns(prepared, rounds, say))
        del prepared
        in_layers = {}
        if compiled:
            in_layers = _compare(_take_turns(_prepare_arms(COMPILED, shape, say, compiled=True), rounds, say))
    return {
        **{
            f"{name}_over_full": fields["over_full"]["median"]
            for name, fields in arms.items()
            if name != REFERENCE
        },
        "compiled_over_full": in_layers["ticket"]["over_full"]["median"] if compiled else None,
        "calls": calls,
        "arms": arms,
        "compiled": in_layers,
        "shape": vars(shape),
        "batch": BATCH,
        "tokens": TOKENS,
        "density": DENSITY,
        "rounds": rounds,
    }


class PreparedArm:
    """One arm's model, and its step in three phases."""

    def __init__(self, arm: Arm, shape: Shape, compiled: bool = False) -> None:
        from multiticket.sparse.watching import attachments_of, watched_by

        setup = StepSetup(shape, arm, BATCH, TOKENS, "float32", "cpu")
        model, trained = prepare(arm, shape, build_model(setup))
        if compiled:
            for layer in model.get_decoder().layers:
                layer.compile()
        attachments = attachments_of(trained)
        self._alone = lambda: watched_by(attachments)
        self._one_step = Step(setup, model, trained)
        self.phases = (self._one_step.forward, self._one_step.backward, self._one_step.update)
        for _ in range(WARM_UP):
            self.seconds()

    def seconds(self) -> list[float]:
        """Of each phase of one step, by the thread's clock."""
        clock = time.thread_time
        marks = []
        with self._alone():
            marks.append(clock())
            for phase in self.phases:
                phase()
                marks.append(clock())
        return [end - start for start, end in pairwise(marks)]

    def calls(self) -> dict[str, int]:
        """Of Python and C functions, in each phase of one step."""
        with self._alone():
            return {name: count_calls(phase) for name, phase in zip(PHASES, self.phases, strict=True)}


def count_calls(function: Callable[[], object]) -> int:
    """How many Python and C functions ``function`` calls on this thread, counting what those call, not itself."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    before = sys.getprofile()
    gc.disable()  # which would call what waits for an object's end
    try:
        sys.setprofile(note)
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count - 2  # the function, and the end of the count


def table(result: Mapping[str, Any]) -> Table:
    """A row an arm."""
    measured = [(ARMS[name].name, result["calls"][name], fields) for name, fields in result["arms"].items()]
    compiled = result["compiled"].items()
    measured += [(f"{ARMS[name].name}, layers compiled", {}, fields) for name, fields in compiled]
    rows: list[list[Entry]] = []
    for name, calls, fields in measured:
        milliseconds = [f"{1e3 * fields['seconds'][phase]['median']:.2f}" for phase in PHASES]
        over = ratio_text(fields["over_full"]) if "over_full" in fields else "1"
        rows.append([name, *(calls.get(phase) for phase in PHASES), *milliseconds, over])
    phases = [*(f"calls {phase}" for phase in PHASES), *(f"{phase} ms" for phase in PHASES)]
    return Table(caption="", columns=["arm", *phases, "time / full (95 %)"], rows=rows)


def caption(result: Mapping[str, Any]) -> str:
    shape = result["shape"]
    return (
        f"Qwen2 of {shape['layers']} layers, width {shape['width']}, {result['batch']} x {result['tokens']} tokens, "
        f"float32, one CPU thread, {result['rounds']} rounds; times of compiled arms over compiled full training"
    )


def _prepare_arms(
    names: Sequence[str], shape: Shape, say: Callable[[str], None], compiled: bool = False
) -> dict[str, PreparedArm]:
    from torch._dynamo.exc import TorchDynamoException

    prepared = {}
    for name in names:
        say(f"{'compiling' if compiled else 'preparing'} {ARMS[name].name}")
        try:
            prepared[name] = PreparedArm(ARMS[name], shape, compiled)
        except TorchDynamoException as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"torch.compile does not work here ({reason}); give --no-compile.") from error
    return prepared


def _take_turns(
    prepared: Mapping[str, PreparedArm], rounds: int, say: Callable[[str], None]
) -> dict[str, list[list[float]]]:
    """Seconds of each phase of each step, by arm."""
    taken: dict[str, list[list[float]]] = {name: [] for name in prepared}
    order = random.Random(0)
    gc.collect()
    gc.freeze()  # an arm's garbage is its own, and the models of all are not looked through for it
    try:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name in order.sample([*prepared], len(prepared)):
                taken[name].append(prepared[name].seconds())
    finally:
        gc.unfreeze()
    return taken


def _compare(taken: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """By arm ``seconds`` of each phase (median and quartiles), and ``over_full`` of the whole step."""
    compared: dict[str, dict[str, Any]] = {}
    full = [sum(step) for step in taken[REFERENCE]]
    for name, steps in taken.items():
        phases = {
            phase: spread(column) for phase, column in zip(PHASES, zip(*steps, strict=True), strict=True)
        }
        compared[name] = {"seconds": phases}
        if name != REFERENCE:
            compared[name]["over_full"] = ratio([sum(step) for step in steps], full)
    return compared


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
