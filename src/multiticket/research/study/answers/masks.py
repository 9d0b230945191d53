"""Kind `masks`: do all of many masks match the reference, and do they differ more than training seeds do?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from multiticket.research.stats.heterogeneity import Heterogeneity, heterogeneity
from multiticket.research.stats.verdicts import MARGIN
from multiticket.research.study.answers.parts import (
    by_setting,
    counts,
    edge_notes,
    numbers_of,
    p_text,
    rounded,
    sides_figure,
    sides_of,
    sides_table,
    unfinished,
    verdict_of_all,
)
from multiticket.research.study.evidence import Evidence, Finished, by, mask_name, setting_name
from multiticket.research.study.page_section import Section, Table
from multiticket.research.study.questions import Question

ALL = (
    "That all masks are not worse is shown where each is by itself, since it is wrong only if one of them is "
    "(intersection-union); that a single one is worse, or is not, is shown with all judged at once."
)


def answer_masks(question: Question, evidence: Evidence) -> Section:
    """Each mask of `cell` against `reference`; reproduced where all are not worse by `margin`.

    `seeds` names a cell of runs of one mask that differ by training seed alone: what they spread says how much of the
    masks' spread is the masks'.
    """
    options = question.options
    margin = options.get("margin", MARGIN)
    runs = evidence.scored(options["cell"])
    sides = sides_of(question, evidence, runs, mask_name)
    missing = unfinished(question, evidence)
    said = []
    for setting, found in by_setting(sides).items():
        passed = sum(side.judged.not_worse for side in found)
        failed = sum(side.judged.worse for side in found)
        said.append(
            f"On {setting_name(setting)} {passed} of {len(found)} masks are shown to be not worse by "
            f"{100 * margin:g} points, with all judged at once (Holm), and {failed} to be worse."
        )
    spreads = _spreads(question, evidence, runs) if "seeds" in options else {}
    said += [_in_words(setting, spread) for setting, spread in spreads.items()]
    tables = [sides_table(sides, f"Each mask minus {options['reference']}")] if sides else []
    if spreads:
        tables.append(_spread_table(spreads))
    caption = f"Each mask minus {options['reference']}; bars are 95 % for all masks at once."
    return Section(
        name=question.name,
        heading=question.claim,
        verdict=verdict_of_all(sides, not missing),
        answer=" ".join(said) if sides else "No mask has a finished run.",
        n=counts(sides),
        command=evidence.command,
        notes=[*missing, *edge_notes(question, evidence), ALL, *_single_note(by(runs, mask_name).values())],
        figures=[sides_figure(sides, margin, caption)] if sides else [],
        tables=tables,
        numbers={
            "margin": margin,
            "sides": numbers_of(sides),
            "spread": [{"setting": list(setting), **asdict(one)} for setting, one in spreads.items()],
        },
    )


def _spreads(
    question: Question, evidence: Evidence, runs: list[Finished]
) -> dict[tuple[str, str], Heterogeneity]:
    """By task and base: masks' spread against that of training seeds, where enough is finished to tell."""
    measure = question.options.get("measure", "pass@1")
    all_runs = {run.run.name: run for run in (*evidence.scored(question.options["seeds"]), *runs)}
    spreads = {}
    for setting, found in by(all_runs.values(), lambda run: run.setting).items():
        groups = [[run.score(measure) for run in masks] for masks in by(found, mask_name).values()]
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
    return Table(
        caption="How much of the runs' spread is the masks' (one-way random effects; standard deviations in points)",
        columns=[
            "task, base",
            "masks",
            "runs",
            "of masks",
            "at most (95 %)",
            "of training seeds",
            "p (F)",
            "p (permutation)",
        ],
        rows=[
            [
                setting_name(setting),
                one.masks,
                one.runs,
                rounded(100 * one.between),
                rounded(100 * one.between_bound),
                rounded(100 * one.within),
                p_text(one.p_value),
                p_text(one.permutation_p),
            ]
            for setting, one in spreads.items()
        ],
    )


def _single_note(groups: Iterable[list[Finished]]) -> list[str]:
    if any(len(group) == 1 for group in groups):
        return [
            "A mask with one run is judged by the ticket that it gave; another training seed would give another."
        ]
    return []
