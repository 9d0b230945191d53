"""What answers of several kinds are made of: judged sides, their table and figure, words for numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multiticket.evaluate.paired import Difference, Scores
from multiticket.evaluate.problem_results import Results
from multiticket.research.stats.verdicts import ALPHA, MARGIN, Judged, judge_all
from multiticket.research.study.answers.formatting import judged_word, p_text, points, rounded, span
from multiticket.research.study.chosen_rate import read_choice
from multiticket.research.study.evidence import Evidence, Finished, by, problem_scores, setting_name
from multiticket.research.study.page_section import Figure, Mark, PageSection, Series, Table, Verdict
from multiticket.research.study.questions import Question

SINGLE_RUNS = (
    "One run stands against one: the interval is that of two models' scores, and does not say how far runs of the same "
    "way of training lie apart. That takes two runs of a side."
)

Setting = tuple[str, str]
"""Task and base."""
Pair = tuple[Setting, str, int, tuple[Scores, Scores, int]]
"""Task and base, a side's name, problems, and what :func:`judge_all` takes."""


@dataclass(frozen=True)
class Side:
    """Runs of one way of training (or one mask) against the reference of the same task and base."""

    setting: Setting
    name: str
    judged: Judged
    problems: int

    @property
    def label(self) -> str:
        return f"{self.name} ({setting_name(self.setting)})"

    @property
    def difference(self) -> Difference:
        return self.judged.difference


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
    references = by(evidence.scored(question.options["reference"]), lambda run: run.setting)
    pairs: list[Pair] = []
    for (setting, side), found in by(runs, lambda run: (run.setting, name(run))).items():
        reference = [one for run in references.get(setting, []) if (one := results(run))]
        own = [one for run in found if (one := results(run))]
        if reference and own:
            pairs.append((setting, side, len(reference[0].problems), beside(question, reference, own)))
    return pairs


def beside(
    question: Question, reference: Sequence[Results], own: Sequence[Results]
) -> tuple[Scores, Scores, int]:
    """What :func:`judge_all` takes of two sides that were measured on the same problems."""
    measure = question.options.get("measure", "pass@1")
    samples = min(one.samples for one in (*reference, *own)) if measure == "pass@1" else 1
    a, b = (problem_scores(of, measure, reference[0]) for of in (reference, own))
    return a, b, samples


def judged_sides(pairs: Sequence[Pair], margin: float) -> list[Side]:
    """All pairs judged at once."""
    judged = judge_all([scores for _, _, _, scores in pairs], margin)
    return [Side(setting, side, one, n) for (setting, side, n, _), one in zip(pairs, judged, strict=True)]


def sides_of(
    question: Question, evidence: Evidence, runs: Iterable[Finished], name: Callable[[Finished], str]
) -> list[Side]:
    """Runs against the question's reference, on the task that they were trained on."""
    pairs = pairs_of(question, evidence, runs, name, lambda run: run.problems)
    return judged_sides(pairs, margin_of(question))


def margin_of(question: Question) -> float:
    return float(question.options.get("margin", MARGIN))


def answered(
    question: Question,
    evidence: Evidence,
    verdict: Verdict,
    notes: Sequence[str] = (),
    other_tasks: bool = False,
    edges: bool = True,
    **found: Any,
) -> PageSection:
    """What was found, under the question's name and claim; undecided, with a note, while runs are missing.

    Args:
        other_tasks: whether runs must be measured on their other tasks too.
        edges: whether a chosen rate at the edge of those tried is noted.
        found: the section's other fields.
    """
    missing = unfinished(question, evidence, other_tasks)
    return PageSection(
        name=question.name,
        heading=question.claim,
        verdict="not decided" if missing else verdict,
        command=evidence.command,
        notes=[*missing, *(edge_notes(question, evidence) if edges else ()), *notes],
        **found,
    )


def answered_by_sides(
    question: Question,
    evidence: Evidence,
    sides: Sequence[Side],
    verdict: Verdict,
    answer: str,
    caption: str,
    figure: Callable[[], Figure],
    tables: Sequence[Table] = (),
    numbers: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    **more: Any,
) -> PageSection:
    """`answered` of sides: their table, a figure and all numbers; nothing is shown where no pair of runs is finished.

    Undecided, with a note, where one run stands against one: that says how sure two models' scores are, and nothing of
    how far runs of one way of training lie apart.

    Args:
        caption: of the sides' table.
        tables: after that one.
        numbers: beside the margin and the sides'.
    """
    single = any(side.judged.runs == side.judged.reference_runs == 1 for side in sides)
    return answered(
        question,
        evidence,
        "not decided" if single else verdict,
        [SINGLE_RUNS, *notes] if single else notes,
        answer=answer,
        n=counts(sides),
        figures=[figure()] if sides else [],
        tables=[sides_table(sides, caption), *tables] if sides else [],
        numbers={"margin": margin_of(question), "sides": numbers_of(sides), **(numbers or {})},
        **more,
    )


def sides_table(sides: Sequence[Side], caption: str) -> Table:
    """One row a side, with both numbers of runs."""
    return Table.of(
        f"{caption}; differences and intervals in percentage points, p of being worse by the margin",
        sides,
        {
            "side": lambda side: side.name,
            "task, base": lambda side: setting_name(side.setting),
            "runs": lambda side: side.judged.runs,
            "ref. runs": lambda side: side.judged.reference_runs,
            "accuracy, %": lambda side: rounded(100 * side.difference.b),
            "ref., %": lambda side: rounded(100 * side.difference.a),
            "difference": lambda side: rounded(100 * side.difference.difference),
            "95 %": lambda side: span(side.difference.interval),
            "all at once": lambda side: span(side.judged.simultaneous),
            "p (Holm)": lambda side: p_text(side.judged.adjusted_p),
            "judged": lambda side: judged_word(side.judged),
        },
    )


def sides_series(sides: Sequence[Side], place: Callable[[Side], Any]) -> list[Series]:
    """Of each task and base the differences in points, with the intervals of all at once."""
    return [
        Series.with_ends(
            setting_name(setting),
            [place(side) for side in found],
            [side.difference.difference for side in found],
            [side.judged.simultaneous for side in found],
            scale=100,
        )
        for setting, found in by_setting(sides).items()
    ]


def margin_marks(margin: float, equal: str) -> list[Mark]:
    return [Mark(at=0, label=equal), Mark(at=-100 * margin, label=f"margin −{100 * margin:g}")]


def sides_figure(sides: Sequence[Side], margin: float, caption: str) -> Figure:
    """A row a side: the difference from the reference in points, with the interval of all at once."""
    several = len({side.setting for side in sides}) > 1
    said = "; ".join(
        f"{side.label} {points(side.difference.difference)} ({span(side.judged.simultaneous)})"
        for side in sides
    )
    return Figure(
        kind="intervals",
        caption=caption,
        alternative=f"Difference from the reference in percentage points, with intervals: {said}.",
        x_label="difference, percentage points",
        series=sides_series(sides, lambda side: f"{side.name}, {side.setting[0]}" if several else side.name),
        marks=margin_marks(margin, "equal"),
    )


def verdict_of_all(sides: Sequence[Side]) -> Verdict:
    """Whether all sides are not worse than the reference by the margin.

    That all are so is shown where each is by itself: the claim is wrong only if one of them is, and that one is called
    so in at most 5 % of studies (intersection-union; Berger, 1982). That not all are is shown where one is worse with
    all judged at once.
    """
    if any(side.judged.worse for side in sides):
        return "not reproduced"
    shown = sides and all(side.judged.p_worse <= ALPHA for side in sides)
    return "reproduced" if shown else "not decided"


def unfinished(question: Question, evidence: Evidence, other_tasks: bool = False) -> list[str]:
    """A note where runs that the question looks at are missing; a verdict waits for them."""
    done, of = evidence.progress(question.labels, other_tasks, question.options.get("reference"))
    if done == of:
        return []
    notes = [f"{done} of the {of} runs for this question are finished; the verdict waits for the rest."]
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


def differences(sides: Sequence[Side]) -> str:
    """Each side against the reference: ``arithmetic: 85.8 % against 87.8 %, −2.0 points (95 % −4.1 to +0.1)``."""
    return "; ".join(
        f"{side.label}: {100 * side.difference.b:.1f} % against {100 * side.difference.a:.1f} %, "
        f"{points(side.difference.difference)} points (95 % {span(side.difference.interval)})"
        for side in sides
    )


def by_setting(sides: Sequence[Side]) -> dict[Setting, list[Side]]:
    """Sides by task and base."""
    groups: dict[Setting, list[Side]] = {}
    for side in sides:
        groups.setdefault(side.setting, []).append(side)
    return groups


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
