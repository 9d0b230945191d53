"""reasoning_gym's tasks."""

import pytest

from multiticket import tasks
from multiticket.tasks import judging

pytest.importorskip("reasoning_gym", reason="reasoning_gym is not installed")

SUMS = "reasoning_gym:chain_sum@min_terms=2,max_terms=2,min_digits=1,max_digits=2,problems=64"


def test_problems_and_scores() -> None:
    task = tasks.get(SUMS)
    assert isinstance(task, tasks.BatchTask)
    splits = {split: judging.rows(task.problems(split)) for split in tasks.SPLITS}
    prompts = [{problem.prompt for problem in problems} for problems in splits.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    assert 0 < len(splits["train"]) <= 64
    problems = splits["test"][:3]
    right = tasks.judge(task, [[f" {p.answer}\n"] for p in problems], problems)
    assert right == [tasks.Judgement(1.0, True)] * 3
    wrong = tasks.judge(task, [["-1"] for p in problems], problems)
    assert not any(judgement.correct for judgement in wrong)
    assert task.score(problems[0].answer, problems[0].answer) == 1.0


def test_the_same_problems_every_time() -> None:
    assert tasks.get(SUMS).problems("train")[:] == tasks.get(SUMS).problems("train")[:]


def test_a_model_that_chats_answers_between_tags() -> None:
    chat = tasks.get(SUMS).in_chat()  # type: ignore[attr-defined]
    assert "<answer>" in chat.system_prompt
    assert chat.max_completion_tokens == 512
    problem = judging.rows(chat.problems("test"))[0]
    said = [
        [f"I add them. <answer>{problem.answer}</answer>."],
        [problem.answer],
        [f"It is {problem.answer}"],
    ]
    assert [j.correct for j in tasks.judge(chat, said, [problem] * 3)] == [True, True, False]
    assert chat.example("3") == "<answer>3</answer>"


def test_all_of_them_can_be_asked_and_scored() -> None:
    from reasoning_gym.factory import DATASETS

    assert len(DATASETS) >= 100
    for kind in sorted(DATASETS):
        options = "@datasets=[{name: chain_sum}, {name: leg_counting}]" if kind == "composite" else ""
        task = tasks.get(f"reasoning_gym:{kind}{options}")
        entry = task._data["test"][0]  # type: ignore[attr-defined]
        problem = tasks.Problem(entry["question"], "", {"split": "test", "index": 0})
        assert problem.prompt
        rewards = [j.reward for j in tasks.judge(task, [["nonsense"], [str(entry["answer"])]], [problem] * 2)]
        assert all(0 <= reward <= 1 for reward in rewards), kind
        assert entry["answer"] is None or rewards[1] >= rewards[0], kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning_gym:nothing", "has no task 'nothing'; it has ab, acre"),
        ("reasoning_gym:chain_sum@terms=3", "chain_sum has no option 'terms'; it has .*min_terms"),
        ("reasoning_gym:chain_sum@min_terms=5,max_terms=2", "cannot be made with"),
        ("reasoning_gym:chain_sum@3", "written name=value, not '3'"),
        ("reasoning_gym:chain_sum@problems=0", "problems must be a whole number"),
    ],
)
def test_mistakes_are_said_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.get(name)
