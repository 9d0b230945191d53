"""A study file: settings that all runs share, and cells whose lists multiply out to runs.

    name: sparsity
    settings: {task: arithmetic, steps: 100}
    cells:
      - {arm: full, learning_rate: [1e-4, 3e-4], seed: [0, 1, 2]}
      - {arm: ticket, density: [0.1, 0.01, 0.001], learning_rate: auto, seed: [0, 1, 2]}

is 6 + 9 runs. A run's name says what its cell sets, and ends in a hash of all its settings, so that one name is
always one run, whatever else the file holds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig, build, read_settings

KEYS = ("name", "settings", "cells")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    name: str
    """Its folder below the study's."""
    config: RunConfig


@dataclass(frozen=True)
class Study:
    """A named list of runs, in the order they are to be done."""

    name: str
    runs: tuple[StudyRun, ...]


def load(path: Path) -> Study:
    """The study in a YAML file.

    Raises:
        ValueError: the file cannot be read, has other keys than name, settings and cells, or a run in it has a setting
            that cannot be right; the sentence names the cell.
    """
    return build_study(read_settings(path), default_name=path.stem)


def build_study(content: Mapping[str, Any], default_name: str = "study") -> Study:
    """The study that ``content`` describes, its runs in the order of the cells, the last list running fastest."""
    unknown = set(content) - set(KEYS)
    if unknown:
        raise ValueError(f"A study has {', '.join(KEYS)}, not {sorted(unknown)[0]!r}.")
    shared, cells = content.get("settings") or {}, content.get("cells")
    if not isinstance(shared, Mapping):
        raise ValueError("settings must be a mapping of settings that all runs share.")
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, Mapping) for cell in cells):
        raise ValueError("cells must be a list of mappings, such as - {arm: ticket, seed: [0, 1, 2]}.")
    runs: dict[str, StudyRun] = {}
    for number, cell in enumerate(cells, start=1):
        for chosen in expand(cell):
            try:
                config = build(_merged(shared, chosen))
            except ValueError as error:
                raise ValueError(f"Cell {number} of the study is wrong: {error}") from None
            run = StudyRun(run_name(chosen, config), config)
            runs.setdefault(run.name, run)  # two cells may ask for one run
    return Study(str(content.get("name") or default_name), tuple(runs.values()))


def expand(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value from each list in ``cell``; a list of lists chooses lists, an empty one is itself."""
    names = list(cell)
    values = [value if isinstance(value, list) and value else [value] for value in cell.values()]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def run_name(chosen: Mapping[str, Any], config: RunConfig) -> str:
    """What the cell set, such as ``ticket-density0.01-seed3``, and 8 hexadecimal digits for all settings."""
    words = []
    for name, value in chosen.items():
        if isinstance(value, Mapping):
            continue  # too long for a name; the hash has it
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(text if name in ("task", "arm", "model", "method") else f"{name}{text}")
    readable = re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join(words)).replace("learning_rate", "rate")
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return f"{readable[:120]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}".lstrip("-.")


def _merged(shared: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(shared)
    for name, value in chosen.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **value} if both else value
    return merged
