"""What becomes of two tasks when what was trained for each is put into one base, and why."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interference import interference
from multiticket import tasks
from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import evaluate
from multiticket.evaluate.paired import Scores, paired_difference
from multiticket.evaluate.problem_results import Results, read_results, scores
from multiticket.models import load_model
from multiticket.research.stats.verdicts import MARGIN, Judged, judge_all
from multiticket.research.theory.kl import kl_between
from multiticket.research.theory.rollouts import Rollout
from multiticket.research.theory.states import find_state
from multiticket.research.theory.trajectory import Contexts
from task_vectors import TaskVector, cosine, shuffled, size_of, task_vector, with_task_vectors

Parts = tuple[tuple[float, str], ...]
"""Moves by name, each with its factor."""
SHUFFLED = ", shuffled"
"""After a task vector's name: its values in random order."""
BASE = "base"


@dataclass(frozen=True)
class Combination:
    """Several trained task vectors in one base."""

    name: str
    parts: Parts
    apart: tuple[str, str]
    """The task vectors that it is compared with: trained on the first task, and on the second."""


@dataclass
class Composed:
    """Everything that was measured of one seed's runs."""

    seed: int
    scores: dict[str, dict[str, Results]] = field(default_factory=dict)
    """By state or combination, and by task."""
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    kl_from_base: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By single task vector, and by task: in contexts of the base."""
    kl_from_apart: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By combination, and by task: from what was trained on that task alone, in its contexts."""
    interference: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By combination of two whole task vectors, and by the task of the first."""
    cosines: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON, without single problems."""
        told = {
            name: getattr(self, name) for name in ("sizes", "kl_from_base", "kl_from_apart", "interference")
        }
        scores = {
            name: {
                task: {"pass@1": float(found.correct.mean()), "greedy": float(found.greedy.mean())}
                for task, found in by_task.items()
            }
            for name, by_task in self.scores.items()
        }
        return {"seed": self.seed, "scores": scores, **told, "cosines": self.cosines}


class Composer:
    """A base with task vectors to put into it, measured on two tasks."""

    def __init__(
        self,
        model: str,
        task_names: Sequence[str],
        runs: Mapping[str, Path],
        settings: EvalConfig,
        contexts: Contexts,
        kept: Path,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            model: the base.
            runs: finished runs by the names of their task vectors; one from a
                merged checkpoint gives the whole task vector.
            kept: the folder in which results of single problems are kept, so that no state is measured twice.
        """
        self.tasks = {name: tasks.get(name) for name in task_names}
        self.settings = settings
        self.contexts = contexts
        self._kept = kept
        self._say = say
        self._runs = {name: path.name for name, path in runs.items()}
        self.base, self.tokenizer = load_model(model)
        self.base.eval()
        self._others = [copy.deepcopy(self.base) for _ in range(3)]
        self.vectors: dict[str, TaskVector] = {}
        for name, path in runs.items():
            self.vectors[name] = task_vector(self.base, find_state(str(path)).load()[0])

    def vector(self, name: str) -> TaskVector:
        """A run's task vector, or one shuffled."""
        plain = name.removesuffix(SHUFFLED)
        return shuffled(self.vectors[plain]) if plain != name else self.vectors[name]

    def measure(self, seed: int, combinations: Sequence[Combination]) -> Composed:
        """All task vectors alone and all combinations, on both tasks."""
        found = Composed(seed)
        singles: dict[str, Parts] = {BASE: (), **{name: ((1.0, name),) for name in self.vectors}}
        for name, parts in {**singles, **{one.name: one.parts for one in combinations}}.items():
            found.scores[name] = {task: self.score(name, parts, task) for task in self.tasks}
        self._say("the size of the task vectors, and KL")
        found.sizes = {name: asdict(size_of(self.base, vector)) for name, vector in self.vectors.items()}
        of_base = {task: self.sample(task, ()) for task in self.tasks}
        for name in self.vectors:
            found.kl_from_base[name] = {
                task: self.kl((), ((1.0, name),), rollouts) for task, rollouts in of_base.items()
            }
        sampled: dict[tuple[str, str], list[Rollout]] = {}
        for one in combinations:
            found.kl_from_apart[one.name] = {}
            whole = [name for factor, name in one.parts if factor == 1]
            adds_up = sorted(whole) == sorted(one.apart)
            for task, own, other in zip(self.tasks, one.apart, one.apart[::-1], strict=True):
                if (task, own) not in sampled:
                    sampled[task, own] = self.sample(task, ((1.0, own),))
                rollouts = sampled[task, own]
                found.kl_from_apart[one.name][task] = self.kl(((1.0, own),), one.parts, rollouts)
                if adds_up:
                    self._say(f"{one.name}: interference on {task}")
                    result = self._interference(own, other, rollouts)
                    found.interference.setdefault(one.name, {})[task] = result
            if adds_up:
                found.cosines[one.name] = cosine(*(self.vector(name) for name in one.apart))
        return found

    def score(self, name: str, parts: Parts, task: str) -> Results:
        """Single problems of a task, kept and read back."""
        path = self._kept / self._file(name, parts, task)
        if not path.exists():
            self._say(f"{name} on {task}")
            with with_task_vectors(self.base, self._vectors(parts)):
                evaluate(self.base, self.tokenizer, self.tasks[task], self.settings).save(path)
        return read_results(path)

    def sample(self, task: str, parts: Parts) -> list[Rollout]:
        """What a state says to a task's problems."""
        with with_task_vectors(self.base, self._vectors(parts)):
            return self.contexts.sample(self.base, self.tokenizer, self.tasks[task])

    def kl(self, before: Parts, after: Parts, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """KL(before || after), as plain JSON."""
        one, other = self._others[:2]
        with with_task_vectors(one, self._vectors(before)), with_task_vectors(other, self._vectors(after)):
            return asdict(kl_between(one, other, rollouts))

    def _interference(self, own: str, other: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        states = [((1.0, own),), ((1.0, other),), ((1.0, own), (1.0, other))]
        with ExitStack() as stack:
            for model, parts in zip(self._others, states, strict=True):
                stack.enter_context(with_task_vectors(model, self._vectors(parts)))
            first, second, both = self._others
            return asdict(interference(self.base, first, second, both, rollouts))

    def _vectors(self, parts: Parts) -> list[tuple[float, TaskVector]]:
        return [(factor, self.vector(name)) for factor, name in parts]

    def _file(self, name: str, parts: Parts, task: str) -> str:
        """A name that tells the runs and how they were measured, so that the same name is the same measurement."""
        runs = [(factor, part, self._runs[part.removesuffix(SHUFFLED)]) for factor, part in parts]
        told = hashlib.sha256(repr((runs, task, self.settings.model_dump_json())).encode()).hexdigest()[:12]
        slug = "".join(letter if letter.isalnum() else "-" for letter in f"{name}-{task}")
        return f"{slug}-{told}.jsonl"


class Found:
    """The same states of several seeds."""

    def __init__(
        self, seeds: Sequence[Composed], combinations: Sequence[Combination], tasks: Sequence[str]
    ) -> None:
        self.seeds = seeds
        self.combinations = {one.name: one for one in combinations}
        self.tasks = list(tasks)

    @property
    def states(self) -> list[str]:
        """Base, single task vectors and combinations, as they were measured."""
        return list(self.seeds[0].scores)

    @property
    def singles(self) -> list[str]:
        return list(self.seeds[0].sizes)

    def results(self, state: str, task: str) -> list[Results]:
        return [seed.scores[state][task] for seed in self.seeds]

    def scores(self, state: str, task: str, measure: str = "pass@1") -> Scores:
        """(seeds, problems)."""
        return scores(self.results(state, task), measure)

    def accuracy(self, state: str, task: str) -> float:
        return float(self.scores(state, task).mean())

    def samples(self, state: str, task: str) -> int:
        return min(one.samples for one in self.results(state, task))

    def interval(self, state: str, task: str) -> tuple[float, float]:
        """95 % of pass@1, over problems and seeds."""
        own = self.scores(state, task)
        if state == BASE:
            own = own[:1]  # one model, measured once
        nothing = np.zeros((1, own.shape[1]))
        low, high = paired_difference(nothing, own, self.samples(state, task), resamples=100).interval
        return max(0.0, low), high

    def judged(self, names: Sequence[str], margin: float = MARGIN) -> dict[str, list[Judged]]:
        """Combinations against what was trained apart, task by task; both tasks of one are judged at once."""
        found = {}
        for name in names:
            apart = self.combinations[name].apart
            found[name] = judge_all(
                [
                    (self.scores(own, task), self.scores(name, task), self.samples(name, task))
                    for own, task in zip(apart, self.tasks, strict=True)
                ],
                margin,
            )
        return found

    def number(self, what: str, *keys: str) -> float:
        """The mean over seeds of a number in `Composed`, such as ``"sizes", "ticket A", "relative"``."""
        found: list[Any] = [getattr(seed, what) for seed in self.seeds]
        for key in keys:
            found = [one[key] for one in found]
        return float(np.mean(found))
