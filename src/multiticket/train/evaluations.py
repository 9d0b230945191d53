"""The evaluations of a run: of what it starts from, of held-out problems on the way, and of what it kept."""

from __future__ import annotations

import json
from typing import Any

from multiticket.config import EvalConfig
from multiticket.evaluate.evaluation import Evaluation, evaluate
from multiticket.runs.files import write_json
from multiticket.runs.folder import read_json
from multiticket.train.setup import Setup


def evaluate_start(run: Setup, known: dict[str, Evaluation]) -> dict[str, Any]:
    """The scores of the base, or of the ticket gone on from; read back where an interrupted run has them already.

    Args:
        known: evaluations of bases by what decides them; one that is missing is added.
    """
    kept = run.folder.path / "eval-before.json"
    if not run.ranks.by_first(kept.exists):
        trained = run.prepared.starts_trained
        run.progress.phase("measuring the ticket" if trained else "measuring the base")
        known = {} if trained else known
        decides = run.config.model_dump(mode="json", include={"model", "dtype", "task", "eval"})
        key = f"{json.dumps(decides)} {run.tokens} {run.config.asking}"
        if key not in known:
            known[key] = _evaluate(run, run.prepared.model, run.tokenizer, run.config.eval)
        evaluation = known[key]

        def write() -> None:
            evaluation.save(run.folder.problems("before"))
            write_json(kept, evaluation.summary())

        run.ranks.by_first(write)
    return run.ranks.by_first(lambda: read_json(kept))


def evaluate_held_out(run: Setup) -> dict[str, Any]:
    """The scores of the model as it is now, on validation problems."""
    settings = run.config.eval.model_copy(update={"split": "validation"})
    with run.progress.aside("measuring on validation problems"):
        return _evaluate(run, run.prepared.model, run.tokenizer, settings).summary()


def evaluate_kept(run: Setup, before: dict[str, Any]) -> dict[str, Any]:
    """The scores of what was written, read back: a whole model, or a ticket or an adapter on a fresh base."""
    run.progress.phase("measuring what was trained")
    place = run.folder.path / run.arm.kept
    with run.ranks.together():
        model, tokenizer = run.arm.read(place, run.config)
    evaluation = _evaluate(run, model, tokenizer, run.config.eval)
    after = evaluation.summary()

    def write() -> None:
        evaluation.save(run.folder.problems("after"))
        run.arm.note_scores(place, {"before": before, "after": after})

    run.ranks.by_first(write)
    return after


def _evaluate(run: Setup, model: Any, tokenizer: Any, settings: EvalConfig) -> Evaluation:
    return evaluate(model, tokenizer, run.task, settings, run.tokens, run.progress.completions, run.ranks)
