"""Tasksets of the verifiers library."""

import sys
from pathlib import Path

import pytest

from multiticket import tasks
from multiticket.tasks import judging

pytest.importorskip("verifiers.v1", reason="verifiers is not installed")

TASKSET = """
import random
import verifiers.v1 as vf

__all__ = ["SumTaskset"]


class SumData(vf.TaskData):
    answer: int


class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.75)
    async def exact(self, trace) -> float:
        return float((trace.last_reply or "").strip() == str(self.data.answer))

    @vf.reward(weight=0.25)
    async def is_number(self, trace) -> float:
        return float(int(trace.last_reply) is not None)
EXTRA

class SumConfig(vf.TasksetConfig):
    terms: int = 2


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    INFINITE = True

    def load(self):
        numbers = random.Random(0)
        while True:
            terms = [numbers.randrange(100) for _ in range(self.config.terms)]
            yield SumTask(SumData(PROMPT, answer=sum(terms)), self.config.task)
"""
PROMPT = 'prompt="+".join(map(str, terms)) + "=", system_prompt="Add."'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(tmp_path)

    def written(name: str, prompt: str = PROMPT, extra: str = "") -> str:
        (tmp_path / f"{name}.py").write_text(TASKSET.replace("PROMPT", prompt).replace("EXTRA", extra))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return f"verifiers:{name}"

    return written


def test_a_taskset_as_its_docs_tell_one_to_write_it(write) -> None:  # type: ignore[no-untyped-def]
    task = tasks.get(write("sums_a") + "@terms=3,problems=200,max_completion_tokens=12")
    assert isinstance(task, tasks.BatchTask)
    assert task.max_completion_tokens == 12
    splits = {split: judging.rows(task.problems(split)) for split in tasks.SPLITS}
    assert {split: len(problems) for split, problems in splits.items()} == {
        "train": 160,
        "validation": 20,
        "test": 20,
    }
    assert task.system_prompt == "Add."  # type: ignore[attr-defined]
    problems = splits["test"][:3]
    assert all(problem.prompt.count("+") == 2 for problem in problems)
    right = [[str(eval(problem.prompt.rstrip("=")))] for problem in problems]
    assert tasks.judge(task, right, problems) == [tasks.Judgement(1.0, True)] * 3
    with pytest.warns(UserWarning, match="failed and counts as 0"):
        judged = tasks.judge(task, [["-1"], ["many"], right[2]], problems)
    assert judged == [tasks.Judgement(0.25, False), tasks.Judgement(0.0, False), tasks.Judgement(1.0, True)]
    assert task.failures == 1  # type: ignore[attr-defined]


def test_messages_and_system_prompts_that_differ(write) -> None:  # type: ignore[no-untyped-def]
    prompt = 'prompt=[vf.UserMessage(content=f"{terms}?")], system_prompt=str(terms[0] % 2)'
    task = tasks.get(write("sums_b", prompt) + "@problems=50")
    prompts = task.problems("train")["prompt"]
    assert task.system_prompt is None  # type: ignore[attr-defined]
    assert prompts[0].startswith('[{"role": "system", "content": "')


CONTAINER = """
    NEEDS_CONTAINER = True
"""
SETUP = """
    async def setup(self, trace, runtime):
        pass
"""
RUNTIME = """
    @vf.reward
    async def tests_pass(self, trace, runtime) -> float:
        return 1.0
"""


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("sums_c", CONTAINER, "needs a container"),
        ("sums_d", SETUP, "needs a runtime for its setup"),
        ("sums_e", RUNTIME, "needs a runtime for its score"),
    ],
)
def test_what_one_process_cannot_run_is_refused(write, name: str, extra: str, message: str) -> None:  # type: ignore[no-untyped-def]
    task = tasks.get(write(name, extra=extra) + "@problems=20")
    with pytest.raises(ValueError, match=message):
        task.problems("train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verifiers:no_such_taskset_here", "Cannot load the taskset 'no_such_taskset_here'"),
        ("verifiers:textarena@nonsense=1", "Cannot load the taskset 'textarena'"),
        ("verifiers:sums@3", "written name=value, not '3'"),
    ],
)
def test_mistakes_are_said_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.get(name)
