"""Judging, with metadata, in batches and with a state."""

from typing import Any

from multiticket import tasks
from multiticket.tasks import judging
from multiticket.tasks.protocol import as_dataset, with_metadata


class Guess:
    """Find a number: each answer is told whether it is too low or too high. The state counts the guesses."""

    name = "guess"
    max_completion_tokens = 4
    turns = 3

    def problems(self, split: str) -> Any:
        return with_metadata([("1 to 9?", "5", {"secret": 5})])

    def begin(self, problem: tasks.Problem) -> dict[str, Any]:
        return {"secret": problem.metadata["secret"], "guesses": 0}

    def answer(self, state: dict[str, Any], completion: str) -> str | None:
        state["guesses"] += 1
        if int(completion) == state["secret"]:
            return None
        return "higher" if int(completion) < state["secret"] else "lower"

    def judge_state(self, state: dict[str, Any], turns: list[str], problem: tasks.Problem) -> tasks.Judgement:
        right = turns[-1] == str(state["secret"])
        return tasks.Judgement(right / (1 + state["guesses"]), right)

    def reply(self, completions: list[str], answer: str) -> str | None:
        raise AssertionError("a task with a state is asked by it")

    score_turns = correct_turns = score = correct = reply


def test_conversations_with_a_state() -> None:
    task = Guess()
    assert isinstance(task, tasks.StatefulTask)
    (problem,) = judging.rows(task.problems("test"))
    turns = judging.begin(task, problem)
    for said, heard in (("3", "higher"), ("8", "lower")):
        turns.append(said)
        assert judging.reply(task, turns, problem) == heard
    turns.append("5")
    assert tasks.judge(task, [turns], [problem]) == [tasks.Judgement(1 / 3, True)]


def test_the_states_of_conversations_are_their_own() -> None:
    from multiticket.generate.conversations import converse

    class Tokenizer:
        chat_template = None
        eos_token = ""

        def __call__(self, text: Any, **_: Any) -> Any:
            return {
                "input_ids": [*map(ord, text)] if isinstance(text, str) else [[*map(ord, t)] for t in text]
            }

        def batch_decode(self, ids: Any, **_: Any) -> list[str]:
            return ["".join(map(chr, row)) for row in ids]

    said = {0: ["5", "-", "-"], 1: ["3", "5", "-"], 2: ["1", "2", "3"]}
    task, (problem,) = Guess(), judging.rows(Guess().problems("test"))
    done = converse(
        ["?"] * 3,
        [problem] * 3,
        task,
        Tokenizer(),
        lambda speaking, turn: ([[*map(ord, said[one.place][turn])] for one in speaking], None),
    )
    turns = [one.turns for one in done]
    assert [each.state["guesses"] for each in turns] == [1, 2, 2]
    judged = tasks.judge(task, turns, [problem] * 3)
    assert [j.correct for j in judged] == [True, True, False]


def test_rows_with_and_without_metadata() -> None:
    assert judging.rows(as_dataset([("a", "b")])) == [tasks.Problem("a", "b", {})]
    rows = [("a", "b", {"n": [1, {"x": None}]}), ("c", "d", {})]
    assert judging.rows(with_metadata(rows)) == [tasks.Problem(*row) for row in rows]
    assert "metadata" not in with_metadata([("a", "b", {})]).column_names


def test_nothing_is_judged_as_nothing() -> None:
    assert tasks.judge(tasks.get("arithmetic"), [], []) == []
