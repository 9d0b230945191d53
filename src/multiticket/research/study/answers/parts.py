"""What answers of several kinds are made of: judged sides, their table and figure, words for numbers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multiticket.evaluate.paired import Scores
from multiticket.evaluate.problem_results import Results
from multiticket.research.stats.verdicts import ALPHA, MARGIN, Judged, judge_all
from multiticket.research.study.choice import read_choice
from multiticket.research.study.evidence import Evidence, Finished, by, problem_scores, setting_name
from multiticket.research.study.page_section import Figure, Mark, Section, Series, Table, Verdict
from multiticket.research.study.questions import Question


@dataclass(frozen=True)
class Side:
    """Runs of one way of training (or one mask) against the reference of the same task and base."""

    setting: tuple[str, str]
    name: str
    judged: Judged
    problems: int

    @property
    def label(self) -> str:
        return f"{self.name} ({setting_name(self.setting)})"


Pair = tuple[tuple[str, str], str, int, tuple[Scores, Scores, int]]
"""Task and base, a side's name, problems, and what :func:`judge_all` takes."""


def pairs_of(
    question: Question,
    evidence: Evidence,
    runs: Iterable[Finished],
    name: Callable[[Finished], str],
    results: Callable[[Finished], Results | None],
) -> list[Pair]:
    """Runs beside the question's reference on the same task and base; those without a finished one are left out.

    Args:
        name: what tells sides apart within one task and base.
        results: of single problems; a run that has none is left out.
    """
    measure = question.options.get("measure", "pass@1")
    references = by(evidence.scored(question.options["reference"]), lambda run: run.setting)
    pairs: list[Pair] = []
    for (setting, side), found in by(runs, lambda run: (run.setting, name(run))).items():
        reference = [one for run in references.get(setting, []) if (one := results(run))]
        own = [one for run in found if (one := results(run))]
        if not reference or not own:
            continue
        like = reference[0]
        samples = min(one.samples for one in (*reference, *own)) if measure == "pass@1" else 1
        scores = problem_scores(reference, measure, like), problem_scores(own, measure, like), samples
        pairs.append((setting, side, len(like.problems), scores))
    return pairs


def judged_sides(pairs: Sequence[Pair], margin: float) -> list[Side]:
    """All pairs judged at once."""
    judged = judge_all([scores for _, _, _, scores in pairs], margin)
    return [Side(setting, side, one, n) for (setting, side, n, _), one in zip(pairs, judged, strict=True)]


def sides_of(
    question: Question, evidence: Evidence, runs: Iterable[Finished], name: Callable[[Finished], str]
) -> list[Side]:
    """Runs against the question's reference, on the task that they were trained on."""
    pairs = pairs_of(question, evidence, runs, name, lambda run: run.problems)
    return judged_sides(pairs, question.options.get("margin", MARGIN))


def sides_table(sides: Sequence[Side], caption: str) -> Table:
    """One row a side, with both numbers of runs."""
    return Table(
        caption=f"{caption}; differences and intervals in percentage points, p of being worse by the margin",
        columns=[
            "side",
            "task, base",
            "runs",
            "ref. runs",
            "accuracy, %",
            "ref., %",
            "difference",
            "95 %",
            "all at once",
            "p (Holm)",
            "judged",
        ],
        rows=[
            [
                side.name,
                setting_name(side.setting),
                side.judged.runs,
                side.judged.reference_runs,
                rounded(100 * side.judged.difference.b),
                rounded(100 * side.judged.difference.a),
                rounded(100 * side.judged.difference.difference),
                span(side.judged.difference.interval),
                span(side.judged.simultaneous),
                p_text(side.judged.adjusted_p),
                judged_word(side.judged),
            ]
            for side in sides
        ],
    )


def sides_figure(sides: Sequence[Side], margin: float, caption: str) -> Figure:
    """A row a side: the difference from the reference in points, with the interval of all at once."""
    several = len({side.setting for side in sides}) > 1
    series = [
        Series(
            name=setting_name(setting),
            x=[f"{side.name}, {setting[0]}" if several else side.name for side in found],
            y=[100 * side.judged.difference.difference for side in found],
            low=[100 * side.judged.simultaneous[0] for side in found],
            high=[100 * side.judged.simultaneous[1] for side in found],
        )
        for setting, found in by_setting(sides).items()
    ]
    said = "; ".join(
        f"{side.label} {points(side.judged.difference.difference)} ({span(side.judged.simultaneous)})"
        for side in sides
    )
    return Figure(
        kind="intervals",
        caption=caption,
        alternative=f"Difference from the reference in percentage points, with intervals: {said}.",
        x_label="difference, percentage points",
        series=series,
        marks=[Mark(at=0, label="equal"), Mark(at=-100 * margin, label=f"margin −{100 * margin:g}")],
    )


def verdict_of_all(sides: Sequence[Side], complete: bool) -> Verdict:
    """Whether all sides are not worse than the reference by the margin.

    That all are so is shown where each is by itself: the claim is wrong only if one of them is, and that one is called
    so in at most 5 % of studies (intersection-union; Berger, 1982). That not all are is shown where one is worse with
    all judged at once.
    """
    if not sides or not complete:
        return "not decided"
    if any(side.judged.worse for side in sides):
        return "not reproduced"
    if all(side.judged.p_worse <= ALPHA for side in sides):
        return "reproduced"
    return "not decided"


def unfinished(question: Question, evidence: Evidence, elsewhere: bool = False) -> list[str]:
    """A note where runs that the question looks at are missing; a verdict waits for them."""
    done, of = evidence.progress(question.labels, elsewhere, question.options.get("reference"))
    if done == of:
        return []
    notes = [f"{done} of the {of} runs that this looks at are finished; the verdict waits for the others."]
    return notes + [f"{name} failed: {reason}" for name, reason in evidence.failures(question.labels)]


def edge_notes(question: Question, evidence: Evidence) -> list[str]:
    """A note for each rate that was the lowest or highest of those tried, where a better one may lie beyond."""
    notes = {}
    for label in question.labels:
        for run in evidence.study.cell(label).runs:
            made = read_choice(evidence.folder, run.choice) if run.choice else None
            if run.choice and made is not None and made["at_the_edge"]:
                tried = " to ".join(f"{made['candidates'][end]['learning_rate']:g}" for end in (0, -1))
                notes[run.choice.name] = (
                    f"{label}, {setting_name((run.config.task, run.config.model))}: the chosen rate "
                    f"{made['learning_rate']:g} is at the edge of those tried, {tried}; a better one may lie beyond."
                )
    return list(dict.fromkeys(notes.values()))


def with_runs(section: Section, question: Question, evidence: Evidence) -> Section:
    """The section with a folded table of every run that it looks at, each with the command that does it again."""
    runs = {run.run.name: run for label in question.labels for run in evidence.scored(label)}
    if not runs:
        return section
    table = Table(
        caption="Every run, and the command that does it again",
        columns=["run", "rate", "accuracy %", "greedy %", "n", "trained numbers", "command"],
        rows=[
            [
                name,
                float(f"{run.result['learning_rate']:.3g}"),
                rounded(100 * run.score("pass@1")),
                rounded(100 * run.score("greedy")),
                run.result["eval"]["after"]["n"],
                run.result["nnz"],
                shlex.join(["multiticket", "study", "rerun", str(evidence.report), name]),
            ]
            for name, run in runs.items()
        ],
        folded=True,
    )
    return section.model_copy(update={"tables": [*section.tables, table]})


def numbers_of(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Everything that was computed of each side, as plain JSON values."""
    return [
        {
            "task": side.setting[0],
            "model": side.setting[1],
            "side": side.name,
            "problems": side.problems,
            **asdict(side.judged),
            "not_worse": side.judged.not_worse,
            "worse": side.judged.worse,
        }
        for side in sides
    ]


def counts(sides: Sequence[Side]) -> str:
    """``3 to 5 runs a side against 5 of the reference, 1,319 problems``."""
    if not sides:
        return "no finished runs yet"
    own = _range(side.judged.runs for side in sides)
    reference = _range(side.judged.reference_runs for side in sides)
    problems = _range(side.problems for side in sides)
    many = "" if len(sides) == 1 else f"{len(sides)} sides of "
    return f"{many}{own} run{'s' * (own != '1')} against {reference} of the reference, {problems} problems"


def judged_word(judged: Judged) -> str:
    if judged.not_worse:
        return "not worse"
    return "worse" if judged.worse else "not decided"


def rounded(value: float) -> float:
    """To a hundredth: of a percentage point."""
    return round(value, 2)


def differences(sides: Sequence[Side]) -> str:
    """Each side against the reference: ``arithmetic: 85.8 % against 87.8 %, −2.0 points (95 % −4.1 to +0.1)``."""
    return "; ".join(
        f"{side.label}: {100 * side.judged.difference.b:.1f} % against {100 * side.judged.difference.a:.1f} %, "
        f"{points(side.judged.difference.difference)} points (95 % {span(side.judged.difference.interval)})"
        for side in sides
    )


def points(share: float) -> str:
    """A difference of shares in percentage points, with a sign: ``−1.5``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def span(interval: tuple[float, float]) -> str:
    """``−2.1 to +0.4``, in points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def by_setting(sides: Sequence[Side]) -> dict[tuple[str, str], list[Side]]:
    """Sides by task and base."""
    groups: dict[tuple[str, str], list[Side]] = {}
    for side in sides:
        groups.setdefault(side.setting, []).append(side)
    return groups


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
