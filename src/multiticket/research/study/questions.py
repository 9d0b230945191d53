"""What a study asks of its runs: a claim, the kind of analysis that decides it, and the cells that it looks at.

    questions:
      - name: match
        claim: A random 1 % matches training every parameter.
        kind: compare
        reference: full
        cell: ticket

Cells are named by their `label`. `OPTIONS` has the kinds with what each takes beside `name`, `claim` and `kind`; the
files of `study/answers` say what each kind does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMON = ("name", "claim", "kind")
REQUIRED = {
    "compare": ("reference", "cell"),
    "masks": ("reference", "cell"),
    "overlap": ("cell",),
    "density": ("reference", "cell"),
    "controls": ("reference", "expect"),
    "elsewhere": ("reference", "cell"),
    "law": ("cells", "exponent"),
    "collapse": ("cells", "exponent"),
    "training": ("cells",),
    "record": ("record",),
    "none": ("why",),
}
OPTIONAL = {
    "compare": ("margin", "measure"),
    "masks": ("margin", "measure", "seeds"),
    "density": ("margin", "measure", "holds_to", "breaks_at"),
    "controls": ("margin", "measure"),
    "elsewhere": ("margin", "measure"),
    "law": ("y", "tolerance"),
    "collapse": ("measure", "tolerance"),
    "record": ("command",),
}
MEASURES = ("pass@1", "greedy")
EXPECTATIONS = ("worse", "not worse", "not better", "same", "any")


@dataclass(frozen=True)
class Question:
    """One claim to be decided."""

    name: str
    """Its anchor in the page and its key in the JSON."""
    claim: str
    """A sentence that is true or not; the heading of its section."""
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    """What the kind takes, all checked but for what only runs can tell."""

    @property
    def labels(self) -> list[str]:
        """Of the cells that it looks at."""
        return _labels(self.options)


def read_questions(given: Any, labels: Collection[str], folder: Path) -> tuple[Question, ...]:
    """The questions of a study file.

    Args:
        labels: of the study's cells.
        folder: where the path of a `record` begins.

    Raises:
        ValueError: a question is not a mapping, has no name, claim or known kind, misses an option or has one too many,
            names a cell that is not there, or repeats a name.
    """
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise ValueError("questions must be a list of mappings, each with name, claim and kind.")
    questions: dict[str, Question] = {}
    for number, content in enumerate(given, start=1):
        where = f"Question {content.get('name', number)!r}"
        for name in COMMON:
            if not isinstance(content.get(name), str) or not content[name].strip():
                raise ValueError(f"{where} needs a {name}.")
        name = content["name"].strip()
        if name in questions or not all(letter.isalnum() or letter in "-_" for letter in name):
            raise ValueError(f"{where} needs a unique name of letters, digits and hyphens.")
        options = {key: value for key, value in content.items() if key not in COMMON}
        _check(where, content["kind"], options, labels)
        if "record" in options:
            options["record"] = str(folder / str(options["record"]))
        questions[name] = Question(name, " ".join(content["claim"].split()), content["kind"], options)
    return tuple(questions.values())


def _check(where: str, kind: str, options: Mapping[str, Any], labels: Collection[str]) -> None:
    if kind not in REQUIRED:
        raise ValueError(f"{where} is of kind {kind!r}: the kinds are {', '.join(REQUIRED)}.")
    missing = [name for name in REQUIRED[kind] if name not in options]
    if missing:
        raise ValueError(f"{where} is of kind {kind}, which needs {missing[0]}.")
    known = (*REQUIRED[kind], *OPTIONAL.get(kind, ()))
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{where} is of kind {kind}, which takes {', '.join(known)}, not {unknown[0]!r}.")
    for name in ("margin", "tolerance", "exponent", "holds_to", "breaks_at"):
        if name in options and not _is_number(options[name]):
            raise ValueError(f"{where}: {name} must be a number, but is {options[name]!r}.")
    if not 0 < options.get("margin", 0.02) < 1:
        raise ValueError(f"{where}: the margin is a difference in accuracy, above 0 and below 1.")
    if options.get("measure", "pass@1") not in MEASURES:
        raise ValueError(f"{where}: the measure is one of {', '.join(MEASURES)}.")
    if options.get("y", "learning_rate") not in ("learning_rate", "kl"):
        raise ValueError(f"{where}: y is learning_rate, or kl of the first step.")
    expected = options.get("expect", {})
    if not isinstance(expected, Mapping) or any(value not in EXPECTATIONS for value in expected.values()):
        raise ValueError(f"{where}: expect says for each cell's label {', '.join(EXPECTATIONS)}.")
    lost = [label for label in _labels(options) if label not in labels]
    if lost:
        raise ValueError(f"{where} refers to a cell labelled {lost[0]!r}, which the study does not have.")


def _labels(options: Mapping[str, Any]) -> list[str]:
    named = [options[name] for name in ("reference", "cell", "seeds") if name in options]
    several = options.get("cells", [])
    named += several if isinstance(several, list) else [several]
    return [str(label) for label in (*named, *options.get("expect", {}))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
