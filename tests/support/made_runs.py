"""Run folders of a study as if it had been done, with accuracies that a test decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from multiticket.config import RunConfig
from multiticket.research.study.chosen_rate import settled
from multiticket.research.study.study_run import StudyRun
from multiticket.runs.files import write_json, write_text
from multiticket.runs.folder import RunFolder

NUMEL = 1_000_000


def make_runs(
    folder: Path, runs: tuple[StudyRun, ...], accuracy: Callable[[RunConfig], float], problems: int = 1500
) -> None:
    """Write every run's folder; a model of accuracy p gets problem i right where its difficulty, shared by all runs, is
    below p, but for one problem in fifty, by chance."""
    difficulty = np.random.default_rng(0).permutation(problems) / problems
    for run in runs:
        config = settled(folder, run)
        assert config is not None
        made = RunFolder(folder / run.name)
        made.create(config)
        generator = np.random.default_rng(int(run.key, 16))
        right = np.repeat((difficulty < accuracy(config))[:, None], config.eval.samples, axis=1)
        right ^= generator.random(right.shape) < 0.02
        greedy = right[:, 0]
        lines = [
            {
                "index": i,
                "prompt": f"problem {i}",
                "answer": str(i),
                "correct": right[i].tolist(),
                "greedy_correct": bool(greedy[i]),
            }
            for i in range(problems)
        ]
        write_text(made.problems("after"), "".join(json.dumps(line) + "\n" for line in lines))
        kl = 0.04 * (rate_of(config) * config.density / 1e-4) ** 2 / 20
        write_text(
            made.metrics,
            json.dumps({"step": 1, "time": 2.0, "reward": 0.3, "kl": kl, "completion_length": 20.0}) + "\n",
        )
        write_json(made.result, result(config, float(right.mean()), float(greedy.mean()), problems))


def rate_of(config: RunConfig) -> float:
    return config.usual_rate if config.learning_rate == "auto" else float(config.learning_rate)


def result(config: RunConfig, pass_1: float, greedy: float, problems: int) -> dict:
    scores = {
        "pass@1": pass_1,
        "interval": [pass_1 - 0.02, pass_1 + 0.02],
        "greedy": greedy,
        "greedy_interval": [greedy - 0.02, greedy + 0.02],
        "reward": pass_1,
        "n": problems,
        "samples": config.eval.samples,
        "temperature": 1.0,
        "split": config.eval.split,
    }
    names = (
        "task",
        "model",
        "arm",
        "method",
        "density",
        "seed",
        "part",
        "training_seed",
        "learning_rate",
        "steps",
    )
    return {
        **{name: getattr(config, name) for name in names},
        "learning_rate": rate_of(config),
        "learning_rate_asked": config.learning_rate,
        "nnz": int(NUMEL * config.density),
        "numel": NUMEL,
        "eval": {"before": scores, "after": scores},
        "stopped": None,
        "file_bytes": 1,
        "train_s": 1.0,
        "wall_s": 2.0,
        "peak_memory_bytes": 1,
        "lora_rank": config.lora_rank or 1,
    }
