"""What ``multiticket theory kl`` measures: how far each checkpoint of a run lies from the base and from the one
before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multiticket import tasks
from multiticket.research.theory.kl import kl_between
from multiticket.research.theory.rollouts import Rollout, sample_rollouts
from multiticket.research.theory.states import State, find_state, states_of_run


@dataclass(frozen=True)
class Contexts:
    """In which contexts the policies are compared: completions of a task's problems, sampled by the first of the
    two.
    """

    split: str
    problems: int
    group: int
    seed: int

    def sample(
        self, model: Any, tokenizer: Any, task: Any, temperature: float = 1.0, tokens: int | None = None
    ) -> list[Rollout]:
        """What a model says to a task's problems; `tokens` at most, default the task's."""
        return sample_rollouts(
            model, tokenizer, task, self.problems, self.group, self.split, temperature, self.seed, tokens
        )


def kl_of_run(path: Path, contexts: Contexts) -> dict[str, Any]:
    """KL(base || .) and KL(previous || .) of each checkpoint and of what the run made, as plain JSON.

    Each pair is compared at the run's temperature, in contexts that its own first policy sampled. Three models are
    in memory: the base, the previous state and the present one.

    Raises:
        ValueError: no run, or nothing in it to compare.
    """
    states = states_of_run(path)
    base, tokenizer = states[0].load()
    of_base = _sampled(states[0], base, tokenizer, contexts)
    temperature = _temperature(states[0])
    rows = []
    previous, previous_name, of_previous = base, states[0].name, of_base
    for state in states[1:]:
        model, _ = state.load()
        row: dict[str, Any] = {"state": state.name, "previous": previous_name}
        row["from_base"] = asdict(kl_between(base, model, of_base, temperature))
        row["from_previous"] = (
            row["from_base"]
            if previous is base
            else asdict(kl_between(previous, model, of_previous, temperature))
        )
        rows.append(row)
        previous, previous_name = model, state.name
        if state is not states[-1]:
            of_previous = _sampled(state, model, tokenizer, contexts)
    about = {"run": str(path), "model": states[0].model, "task": states[0].task, "temperature": temperature}
    return {**about, **asdict(contexts), "states": rows}


def kl_of_states(before: str, after: str, task: str | None, contexts: Contexts) -> dict[str, Any]:
    """KL(before || after) of the states at two places (`states.find_state`), as plain JSON.

    Args:
        task: None: that of the run or ticket named second, else of the first.
    """
    first, second = find_state(before), find_state(after)
    named = [state for state in (second, first) if state.names_task]
    chosen = task or (named[0].task if named else first.task)
    temperature = _temperature(second if second.config is not None else first)
    model, tokenizer = first.load()
    rollouts = _sampled(first, model, tokenizer, contexts, chosen)
    other, _ = second.load()
    about = {"before": before, "after": after, "task": chosen, "temperature": temperature}
    return {**about, **asdict(contexts), "kl": asdict(kl_between(model, other, rollouts, temperature))}


def _temperature(state: State) -> float:
    return state.config.temperature if state.config is not None else 1.0


def _sampled(
    state: State, model: Any, tokenizer: Any, contexts: Contexts, task: str | None = None
) -> list[Rollout]:
    tokens = state.config.max_completion_tokens if state.config is not None and task is None else None
    return contexts.sample(model, tokenizer, tasks.get(task or state.task), _temperature(state), tokens)
