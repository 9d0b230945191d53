"""A cell that chooses its learning rate: several rates on the validation split, then the best one scored on the test.

    - {label: full, arm: full, training_seed: [0, 1, 2, 3, 4],
       choose: {learning_rate: [1e-4, 2e-4, 4e-4, 8e-4], training_seed: 100}}

What `choose` holds stands in for the cell's own settings in the sweep: every list in it multiplies out, and each list
of seeds or parts that the cell has must be settled there, so that the sweep is a few runs. Its training seeds are not
those that are scored: a rate would else be chosen for how well it did with a seed's luck, and scored with that luck.
All runs of the cell that differ by seed and part alone share one sweep and one rate.

Nothing of this needs order or memory: a scored run's name follows from its sweep's names, so all names are known before
the first run, and which rate was chosen follows from the sweep's results (`study/chosen_rate.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from multiticket.config import RunConfig, build
from multiticket.research.study.study_run import Choice, StudyRun, expand, identity, merged, run_name

CHOOSE = "choose"
REPEATED = ("seed", "training_seed", "part")
"""What tells runs of one way of training apart, so that a rate is chosen for all of them."""


def chosen_run(
    shared: Mapping[str, Any],
    cell: Mapping[str, Any],
    chosen: Mapping[str, Any],
    choose: Any,
    known: dict[str, StudyRun],
) -> StudyRun:
    """The scored run of `chosen`, a choice from the cell's lists; its sweep's runs go to `known`, by their keys.

    Raises:
        ValueError: what `choose` holds cannot choose a rate.
    """
    _check(cell, choose)
    sweep = []
    for tried in expand(choose):
        settings = merged(merged(shared, chosen), tried)
        settings["eval"] = {**(settings.get("eval") or {}), "split": "validation"}
        config = build(settings)
        words = {name: value for name, value in chosen.items() if name not in tried}
        run = StudyRun("sweep-" + run_name({**words, **tried}, identity(config)), config)
        sweep.append(known.setdefault(run.key, run))
    unique = tuple({run.name: run for run in sweep}.values())
    digest = hashlib.sha256(" ".join(run.key for run in unique).encode()).hexdigest()[:8]
    choice = Choice(f"rate-{digest}", unique)
    config = build(merged(merged(shared, chosen), {"learning_rate": unique[0].config.learning_rate}))
    _check_seeds(config, unique)
    return StudyRun(run_name(chosen, identity(config, choice)), config, choice)


def _check(cell: Mapping[str, Any], choose: Any) -> None:
    rates = choose.get("learning_rate") if isinstance(choose, Mapping) else None
    if not isinstance(rates, list) or len(rates) < 2 or "auto" in rates:
        raise ValueError(
            "choose needs two or more learning rates, such as "
            "choose: {learning_rate: [1e-4, 3e-4], training_seed: 100}."
        )
    if "learning_rate" in cell:
        raise ValueError("it has a learning_rate and a choose: give one.")
    for name in REPEATED:
        if isinstance(cell.get(name), list) and name not in choose:
            raise ValueError(
                f"choose must say with which {name} rates are tried, since the cell has several: give it one number."
            )


def _check_seeds(scored: RunConfig, sweep: tuple[StudyRun, ...]) -> None:
    if any(run.config.training_seed == scored.training_seed for run in sweep):
        raise ValueError(
            f"rates are chosen with training_seed {scored.training_seed}, which is evaluated too: "
            "choose with another, such as 100."
        )
