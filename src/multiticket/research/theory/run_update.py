"""What ``multiticket theory updates`` measures: a finished run against its base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiticket import tasks
from multiticket.mask import masked_candidates
from multiticket.research.theory.kinds import kind_of
from multiticket.research.theory.kl import kl_between
from multiticket.research.theory.states import State, made_by
from multiticket.research.theory.trajectory import Contexts
from multiticket.research.theory.updates import Moved, TensorUpdate, tensor_updates
from multiticket.runs.folder import RunFolder

ALL = "all"


def update_of_run(path: Path, contexts: Contexts) -> dict[str, Any]:
    """Where and how far the weights moved, in which directions, and the KL from the base, as plain JSON.

    Raises:
        ValueError: there is no run, or it is not finished.
    """
    run = RunFolder(path)
    if not run.config.exists():
        raise ValueError(f"{path} holds no run: give a run's folder, which contains config.json.")
    made, result = made_by(path), run.read_result()
    if made is None or result is None:
        raise ValueError(
            f"The run in {path} is not finished, so there is no update to measure: finish it first."
        )
    base, tokenizer = State("base", made.model, made.task, made.config).load()
    model, _ = made.load()
    updates = tensor_updates(dict(masked_candidates(base)), dict(masked_candidates(model)))
    assert made.config is not None
    temperature = made.config.temperature
    task, most = tasks.get(made.task), made.config.max_completion_tokens
    rollouts = contexts.sample(base, tokenizer, task, temperature, most)
    return {
        "run": str(path),
        **{name: result[name] for name in ("arm", "method", "density", "seed", "part", "nnz", "steps")},
        "dtype": made.dtype,
        "learning_rate": result["learning_rate"],
        "pass@1": result["eval"]["after"]["pass@1"],
        "kl_from_base": asdict(kl_between(base, model, rollouts, temperature)),
        "moved": {kind: _numbers(moved) for kind, moved in by_kind(updates).items()},
        "matrices": {
            name: None if update.matrix is None else {"kind": kind_of(name), **asdict(update.matrix)}
            for name, update in updates.items()
        },
    }


def by_kind(updates: dict[str, TensorUpdate]) -> dict[str, Moved]:
    """The counts and norms of all tensors together, and of each kind's."""
    found = {ALL: Moved()}
    for name, update in updates.items():
        found[ALL].add(update.moved)
        found.setdefault(kind_of(name), Moved()).add(update.moved)
    return found


def _numbers(moved: Moved) -> dict[str, float]:
    return {
        **asdict(moved),
        "distance": moved.distance,
        "relative": moved.relative if moved.base_squared else 0.0,
    }


def matrix_means(matrices: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By kind, and over all: means over matrices that moved, of ranks as shares of the full rank, and overlaps
    over chance.
    """
    cells: dict[str, list[dict[str, float]]] = {}
    for row in matrices.values():
        if row is None:
            continue
        side = min(row["rows"], row["columns"])
        numbers = {
            "numerical_rank": row["numerical_rank"] / side,
            "entropy": row["effective"]["entropy"] / side,
            "entropy_shuffled": row["shuffled"]["entropy"] / side,
            "participation": row["effective"]["participation"] / side,
            "participation_shuffled": row["shuffled"]["participation"] / side,
            "energy95": row["effective"]["energy95"] / side,
            "left": row["left"] * row["rows"] / row["top"],
            "right": row["right"] * row["columns"] / row["top"],
            "both": row["both"] * row["rows"] * row["columns"] / row["top"] ** 2,
        }
        for kind in (ALL, row["kind"]):
            cells.setdefault(kind, []).append(numbers)
    return {
        kind: {
            "matrices": len(rows),
            **{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]},
        }
        for kind, rows in cells.items()
    }
