"""Kind `masks`: do all of many masks match the reference, and do they differ more than training seeds do?"""

from __future__ import annotations

from dataclasses import asdict

from multiticket.research.stats.heterogeneity import Heterogeneity, heterogeneity
from multiticket.research.study.answers import sides as compared
from multiticket.research.study.answers.formatting import p_text, rounded
from multiticket.research.study.evidence import Evidence, Finished, by, mask_name, setting_name
from multiticket.research.study.page_section import PageSection, Table
from multiticket.research.study.questions import Question

ALL = (
    "That all masks are not worse is shown where each is by itself, since it is wrong only if one of them is "
    "(intersection-union); that a single one is worse, or is not, is shown with all judged at once."
)
SINGLE = "A mask with one run is judged by that run's ticket; another training seed would give another."


def answer_masks(question: Question, evidence: Evidence) -> PageSection:
    """Each mask of `cell` against `reference`; reproduced where all are not worse by `margin`.

    `seeds` names a cell of runs of one mask that differ by training seed alone: what they spread says how much of the
    masks' spread is the masks'.
    """
    margin = compared.margin_of(question)
    runs = evidence.scored(question.options["cell"])
    sides = compared.sides_of(question, evidence, runs, lambda run: mask_name(run.config))
    said = []
    for setting, found in compared.by_setting(sides).items():
        passed = sum(side.judged.not_worse for side in found)
        failed = sum(side.judged.worse for side in found)
        said.append(
            f"On {setting_name(setting)} {passed} of {len(found)} masks are shown to be not worse by "
            f"{100 * margin:g} points, with all judged at once (Holm), and {failed} to be worse."
        )
    spreads = _spreads(question, evidence, runs) if "seeds" in question.options else {}
    said += [_in_words(setting, spread) for setting, spread in spreads.items()]
    minus = f"Each mask minus {question.options['reference']}"
    single = any(len(group) == 1 for group in by(runs, lambda run: mask_name(run.config)).values())
    return compared.answered_by_sides(
        question,
        evidence,
        sides,
        compared.verdict_of_all(sides),
        " ".join(said) if sides else "No mask has a finished run.",
        minus,
        lambda: compared.sides_figure(sides, margin, f"{minus}; bars are 95 % for all masks at once."),
        [_spread_table(spreads)] if spreads else [],
        {"spread": [{"setting": list(setting), **asdict(one)} for setting, one in spreads.items()]},
        notes=[ALL, SINGLE] if single else [ALL],
    )


def _spreads(
    question: Question, evidence: Evidence, runs: list[Finished]
) -> dict[tuple[str, str], Heterogeneity]:
    """By task and base: masks' spread against that of training seeds, where enough is finished to tell."""
    measure = question.options.get("measure", "pass@1")
    all_runs = {run.run.name: run for run in (*evidence.scored(question.options["seeds"]), *runs)}
    spreads = {}
    for setting, found in by(all_runs.values(), lambda run: run.setting).items():
        groups = [
            [run.score(measure) for run in masks]
            for masks in by(found, lambda run: mask_name(run.config)).values()
        ]
        if len(groups) > 1 and max(map(len, groups)) > 1:
            spreads[setting] = heterogeneity(groups)
    return spreads


def _in_words(setting: tuple[str, str], spread: Heterogeneity) -> str:
    differ = "differ" if spread.p_value <= 0.05 else "are not seen to differ"
    return (
        f"On {setting_name(setting)} masks {differ} by more than training seeds do (p {p_text(spread.p_value)}): "
        f"standard deviation of masks {100 * spread.between:.2f} points (at most {100 * spread.between_bound:.2f}), "
        f"of seeds {100 * spread.within:.2f}."
    )


def _spread_table(spreads: dict[tuple[str, str], Heterogeneity]) -> Table:
    return Table.of(
        "How much of the runs' spread is the masks' (one-way random effects; standard deviations in points)",
        spreads.items(),
        {
            "task, base": lambda one: setting_name(one[0]),
            "masks": lambda one: one[1].masks,
            "runs": lambda one: one[1].runs,
            "of masks": lambda one: rounded(100 * one[1].between),
            "at most (95 %)": lambda one: rounded(100 * one[1].between_bound),
            "of training seeds": lambda one: rounded(100 * one[1].within),
            "p (F)": lambda one: p_text(one[1].p_value),
            "p (permutation)": lambda one: p_text(one[1].permutation_p),
        },
    )
