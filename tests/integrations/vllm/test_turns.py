"""Requests are grouped by ticket: never two tickets at once, nobody waits for ever, faults pass."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.integrations.vllm.turns import Turns


class Weights:
    """A stand-in engine, which sees every swap and every request under way."""

    def __init__(self, failing: int = 0) -> None:
        self.now: str | None = None
        self.running: Counter[str | None] = Counter()
        self.swaps: list[str | None] = []
        self.failing = failing

    async def swap(self, name: str | None) -> None:
        assert not +self.running, "a swap inside a group"
        self.now = "torn"
        await asyncio.sleep(0)
        assert not +self.running, "a request came in during a swap"
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the swap failed")
        self.now = name
        self.swaps.append(name)

    async def request(self, turns: Turns, name: str | None, steps: int) -> str:
        async with turns.turn(name):
            self.running[name] += 1
            try:
                for _ in range(steps):
                    assert self.now == name
                    await asyncio.sleep(0)
                assert self.now == name
            finally:
                self.running[name] -= 1
        return "answered"


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), failing=st.integers(0, 2), cancel=st.sampled_from([0.0, 0.3]))
def test_every_answer_is_of_its_own_ticket(seed: int, failing: int, cancel: float) -> None:
    draw = random.Random(seed)

    async def client(weights: Weights, turns: Turns) -> list[str]:
        answers = []
        for _ in range(6):
            name = draw.choice(["a", "b", "c", None])
            task = asyncio.create_task(weights.request(turns, name, draw.randrange(5)))
            for _ in range(draw.randrange(6)):
                await asyncio.sleep(0)
            if draw.random() < cancel:
                task.cancel()
            try:
                answers.append(await task)
            except asyncio.CancelledError:
                answers.append("gave up")
            except RuntimeError as error:
                answers.append(str(error))
        return answers

    async def run() -> list[str]:
        weights = Weights(failing)
        turns = Turns(weights.swap)
        answers = await asyncio.wait_for(asyncio.gather(*(client(weights, turns) for _ in range(8))), 20)
        assert turns._inside == 0
        assert not turns._waiting
        assert await weights.request(turns, "c", 1) == "answered"  # it still goes on
        return [answer for each in answers for answer in each]

    answers = asyncio.run(run())
    if not cancel and not failing:
        assert set(answers) == {"answered"}
    assert set(answers) <= {"answered", "gave up", "the swap failed"}


def test_a_group_is_let_in_together_and_then_the_longest_waiting() -> None:
    async def run() -> Weights:
        weights = Weights()
        turns = Turns(weights.swap)
        requests = [weights.request(turns, name, 3) for name in [None, "a", "b", "a", None, "b", "a"]]
        await asyncio.gather(*requests)
        return weights

    assert asyncio.run(run()).swaps == ["a", "b", None]


def test_a_stream_of_one_ticket_does_not_keep_another_waiting() -> None:
    async def run() -> tuple[int, Weights]:
        weights = Weights()
        turns = Turns(weights.swap)
        served = 0

        async def stream() -> None:
            nonlocal served
            while True:
                await weights.request(turns, "a", 2)
                served += 1

        streams = [asyncio.create_task(stream()) for _ in range(4)]
        await asyncio.sleep(0.01)
        served = 0
        await weights.request(turns, "b", 1)
        before_b = served
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return before_b, weights

    before_b, weights = asyncio.run(run())
    assert before_b <= 8  # those under way, and not the endless rest
    assert weights.swaps[:2] == ["a", "b"]


def test_a_failed_swap_is_told_to_its_group_alone_and_repeated() -> None:
    async def run() -> None:
        weights = Weights(failing=1)
        turns = Turns(weights.swap)
        answers = await asyncio.gather(
            *(weights.request(turns, name, 1) for name in ["a", "a", "b"]), return_exceptions=True
        )
        assert [str(answer) for answer in answers] == ["the swap failed", "the swap failed", "answered"]
        assert await weights.request(turns, None, 1) == "answered"
        weights.failing = 1
        with pytest.raises(RuntimeError):
            await weights.request(turns, "a", 1)
        assert not turns.known
        assert await weights.request(turns, None, 1) == "answered"
        assert weights.swaps[-1] is None, "the base was written again"

    asyncio.run(run())
