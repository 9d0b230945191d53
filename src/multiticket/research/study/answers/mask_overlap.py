"""Kind `overlap`: do masks share more positions than chance gives?"""

from __future__ import annotations

import itertools
from statistics import NormalDist
from typing import Any

from multiticket.config import RunConfig
from multiticket.research.stats.verdicts import ALPHA
from multiticket.research.study.evidence import Evidence, mask_name
from multiticket.research.study.page_section import Figure, PageSection, Table
from multiticket.research.study.questions import Question

SHARED = ("intersection", "jaccard", "expected", "z")


def answer_overlap(question: Question, evidence: Evidence) -> PageSection:
    """Every pair of the masks of `cell`, rebuilt from their rules on their base; no run need be finished.

    Reproduced where no pair's intersection is above what independent masks of the same counts have, at 5 % over all
    pairs (normal approximation to the hypergeometric, Bonferroni).
    """
    configs: dict[tuple[Any, ...], RunConfig] = {}
    for run in evidence.study.cell(question.options["cell"]).runs:
        config = run.config
        configs.setdefault((config.model, config.density, config.seed, config.part), config)
    names = [mask_name(config) for config in configs.values()]
    asked: dict[str, Any] = {"name": question.name, "heading": question.claim}
    try:
        pairs = _pairs([*configs.values()])
    except ValueError as error:  # the base is not here
        return PageSection(**asked, verdict="not decided", answer=f"The masks cannot be made: {error}")
    if not pairs:
        return PageSection(**asked, verdict="not decided", answer="There is no pair of masks.")
    jaccard = [pair["jaccard"] for pair in pairs]
    limit = NormalDist().inv_cdf(1 - ALPHA / len(pairs))
    above = [pair for pair in pairs if pair["z"] > limit]
    mean, chance = sum(jaccard) / len(jaccard), sum(pair["expected"] for pair in pairs) / len(pairs)
    said = (
        f"Over {len(pairs)} pairs of {len(names)} masks the Jaccard index is {mean:.6f} on average and at most "
        f"{max(jaccard):.6f}; independent masks have {chance:.6f}. {len(above)} pairs share more than expected "
        "by chance."
    )
    table = Table.of(
        "Pairs of masks",
        pairs,
        {
            "pair": lambda pair: f"{names[pair['a']]} and {names[pair['b']]}",
            "shared positions": lambda pair: pair["intersection"],
            "Jaccard": lambda pair: round(pair["jaccard"], 6),
            "by chance": lambda pair: round(pair["expected"], 6),
            "z": lambda pair: round(pair["z"], 2),
        },
    )
    return PageSection(
        **asked,
        verdict="not reproduced" if above else "reproduced",
        answer=said,
        n=f"{len(names)} masks, {len(pairs)} pairs",
        command=evidence.command,
        figures=[_figure(names, pairs, said)] if max(jaccard) > 0 else [],
        tables=[table],
        numbers={"pairs": pairs, "limit": limit},
    )


def _figure(names: list[str], pairs: list[dict[str, Any]], said: str) -> Figure:
    values: list[list[float | None]] = [[None] * len(names) for _ in names]
    for pair in pairs:
        values[pair["a"]][pair["b"]] = values[pair["b"]][pair["a"]] = pair["jaccard"]
    return Figure(
        kind="matrix",
        caption="Jaccard index of each pair of masks: squares' areas, the largest that of the largest index.",
        alternative=said,
        rows=names,
        columns=names,
        values=values,
    )


def _pairs(configs: list[RunConfig]) -> list[dict[str, Any]]:
    """Index of each mask of a pair of one base, and what the two share."""
    from multiticket.arms.masks import mask_rule
    from multiticket.mask import Mask, overlap
    from multiticket.models import load_model

    models: dict[str, Any] = {}
    masks = []
    for config in configs:
        if config.model not in models:
            models[config.model] = load_model(config.model, config.dtype)[0]
        model = models[config.model]
        mask = Mask.from_rule(model, mask_rule(config))
        drawn_once = {name: mask.indices(name) for name in mask.names}
        masks.append(Mask.from_indices(model, drawn_once))
    found = []
    for a, b in itertools.combinations(range(len(masks)), 2):
        if configs[a].model != configs[b].model:
            continue
        shared = overlap(masks[a], masks[b])
        found.append({"a": a, "b": b, **{name: getattr(shared, name) for name in SHARED}})
    return found
