"""A task's scores as TRL takes rewards."""

from __future__ import annotations

from typing import Any

from multiticket import tasks
from multiticket.runs.ranks import ALONE, Ranks
from multiticket.tasks.judging import failures_of, rows


def reward_function(task: Any, ranks: Ranks = ALONE) -> Any:
    """The task's score as TRL calls rewards; the share of right answers goes to the log beside it.

    So does the number of completions that the task's verifier could not judge, where it counts them. Each of `ranks`
    judges its own completions; where a score raises on one, it raises on all.
    """

    def reward(
        prompts: Any,
        completions: list[str],
        answer: list[str],
        log_metric: Any,
        log_extra: Any,
        **columns: Any,
    ) -> list[float]:
        log_extra("answer", list(answer))  # for samples.jsonl
        if "seen" in columns:
            log_extra("prompt", list(columns["seen"]))
        turns = columns.get("turns") or [[completion] for completion in completions]
        given = {name: columns[name] for name in ("metadata", "problem") if name in columns}
        problems = rows({"prompt": prompts, "answer": answer, **given})
        failed_before = failures_of(task)
        with ranks.together():
            judged = tasks.judge(task, turns, problems)
        failures = failures_of(task) - failed_before
        log_metric("failures", failures * ranks.size)  # TRL takes the ranks' mean
        log_metric("accuracy", sum(judgement.correct for judgement in judged) / len(judged))
        episodes = [each.episode for each in turns if getattr(each, "episode", None) is not None]
        if episodes:
            log_metric("tool_calls", sum(episode.calls for episode in episodes) / len(episodes))
            log_metric("tool_failures", sum(episode.failed for episode in episodes) * ranks.size)
        return [judgement.reward for judgement in judged]

    return reward
