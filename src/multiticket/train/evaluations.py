"""The evaluations of a run: of what it starts from, of held-out problems on the way, and of what it kept."""

from __future__ import annotations

from typing import Any

from multiticket.config import EvalConfig, RunConfig
from multiticket.evaluate.evaluation import Evaluation, evaluate
from multiticket.runs.files import write_json
from multiticket.runs.folder import read_json
from multiticket.runs.measured_bases import MeasuredBases
from multiticket.train.setup import Setup


def evaluate_start(run: Setup, bases: MeasuredBases | None) -> dict[str, Any]:
    """The scores of the base, or of the ticket gone on from; read back where an interrupted run has them already.

    Args:
        bases: what is known of bases; one that is missing is added.
    """
    kept = run.folder.before
    trained = run.prepared.starts_trained
    known = None if trained else bases
    problems = run.folder.problems("before")

    def at_hand() -> bool:
        return kept.exists() or (known is not None and known.give(run.config, problems, kept))

    if not run.ranks.by_first(at_hand):
        run.progress.phase("measuring the ticket" if trained else "measuring the base")
        evaluation = _evaluate(run, run.prepared.model, run.tokenizer, run.config.eval)

        def write() -> None:
            evaluation.save(problems)
            write_json(kept, evaluation.summary())
            if known is not None:
                known.take(run.config, problems, evaluation.summary())

        run.ranks.by_first(write)
    return run.ranks.by_first(lambda: read_json(kept))


def evaluate_held_out(run: Setup) -> dict[str, Any]:
    """The scores of the model as it is now, on validation problems."""
    settings = run.config.eval.model_copy(update={"split": "validation"})
    with run.progress.aside("measuring on validation problems"):
        return _evaluate(run, run.prepared.model, run.tokenizer, settings).summary()


def evaluate_kept(run: Setup, before: dict[str, Any]) -> dict[str, Any]:
    """All scores of the run: ``before``, ``after`` and, where that differs, ``shipped``.

    ``after`` is of what was written, read back: a whole model, or a ticket or an adapter on a fresh base. ``shipped``
    is of the same in the ``dtype`` of the checkpoint into which it is merged, which rounds it.
    """
    run.progress.phase("measuring what was trained")
    scores = {"before": before, "after": _evaluate_read_back(run, "after", run.config)}
    dtype = run.arm.shipped_dtype(run.config)
    if dtype is not None:
        run.progress.phase(f"measuring it in {dtype}")
        shipped = _evaluate_read_back(run, "shipped", run.config.model_copy(update={"dtype": dtype}))
        scores["shipped"] = {"dtype": dtype, **shipped}
    run.ranks.by_first(lambda: run.arm.note_scores(run.folder.path / run.arm.kept, scores))
    return scores


def _evaluate_read_back(run: Setup, when: str, config: RunConfig) -> dict[str, Any]:
    with run.ranks.together():
        model, tokenizer = run.arm.read(run.folder.path / run.arm.kept, config)
    evaluation = _evaluate(run, model, tokenizer, config.eval)
    run.ranks.by_first(lambda: evaluation.save(run.folder.problems(when)))
    return evaluation.summary()


def _evaluate(run: Setup, model: Any, tokenizer: Any, settings: EvalConfig) -> Evaluation:
    return evaluate(model, tokenizer, run.task, settings, run.tokens, run.progress.completions, run.ranks)
