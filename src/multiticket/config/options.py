"""The settings of a run as options of a command line, read from their declarations in :class:`RunConfig`.

``learning_rate`` becomes ``--learning-rate``; a nested setting such as ``eval.split`` becomes ``--eval-split``, and the
evaluation's go by ``--split`` too where a run has no setting of that name. Help, default and bounds are the field's.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from multiticket.config import RunConfig, read_options, read_yaml

LIBRARY_OPTIONS = "grpo"
"""The setting that is given as ``--set name=value``, as often as wanted."""
SHORT = "eval"
"""The nested settings that go by their own names too."""
PANELS = {
    "task": "What is trained",
    "method": "The mask and LoRA",
    "training_seed": "Training",
    "save_every": "Checkpoints and logs",
    "eval": "Evaluation before and after",
    "eval_every": "Checkpoints and logs",
    "collapse": "What counts as a collapse",
    "from_ticket": "What is trained",
}
"""Headings in the help, each from this setting on."""
BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


@dataclass(frozen=True)
class Option:
    """One setting as an option."""

    path: tuple[str, ...]
    """Where it lies in the settings, such as ``("eval", "split")``."""
    names: tuple[str, ...]
    """Such as ``--eval-split``, ``--split``."""
    kind: Any
    """What a command line reads it as: ``bool``, ``int``, ``float``, ``str`` or ``list[str]``."""
    choices: tuple[str, ...]
    """What it can be, where that is one of a few words."""
    number_or_word: bool
    """A number, or text where it is none."""
    mapping: bool
    """Pairs, given as YAML."""
    help: str
    panel: str

    @property
    def parameter(self) -> str:
        """Its name as a parameter in Python."""
        return "_".join(self.path)

    def read(self, given: Any) -> Any:
        """The setting's value from what the command line read; bounds and choices are the setting's to check.

        Raises:
            ValueError: pairs were expected, or a number, and this is neither.
        """
        if self.path == (LIBRARY_OPTIONS,):
            return read_options(given)
        if self.mapping:
            return self._pairs(given)
        return self._number(given) if self.number_or_word else given

    def _pairs(self, text: str) -> dict[str, Any]:
        try:
            pairs = read_yaml(text)
        except ValueError:
            pairs = None
        if not isinstance(pairs, dict):
            raise ValueError(
                f"{self.names[0]} takes 'name: value' pairs, such as 'layers: last', not {text!r}."
            )
        return pairs

    def _number(self, text: str) -> Any:
        if text in self.choices:
            return text
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
        if self.choices:
            raise ValueError(f"{self.names[0]} takes a number or {' or '.join(self.choices)}, not {text!r}.")
        return text


def options() -> list[Option]:
    """All settings of a run, in the order of their declaration."""
    return list(_options(RunConfig))


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `given` names by parameter, nested; what is None was not given."""
    settings: dict[str, Any] = {}
    for option in options():
        value = given.get(option.parameter)
        if value is None or value == []:
            continue
        place = settings
        for name in option.path[:-1]:
            place = place.setdefault(name, {})
        place[option.path[-1]] = option.read(value)
    return settings


def _options(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[Option]:
    panel = PANELS.get(above[0], "") if above else ""
    for name, field in model.model_fields.items():
        panel = panel if above else PANELS.get(name, panel)
        path = (*above, name)
        kinds = tuple(_kinds(field.annotation))
        if isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
            yield from _options(kinds[0], path)
            continue
        names = ["--" + "-".join(path).replace("_", "-")]
        if above == (SHORT,) and name not in RunConfig.model_fields:
            names.append("--" + name.replace("_", "-"))
        if path == (LIBRARY_OPTIONS,):
            names = ["--set"]
        choices = tuple(str(one) for kind in kinds if get_origin(kind) is Literal for one in get_args(kind))
        plain = [kind for kind in kinds if kind in (bool, int, float, str)]
        mixed = bool(plain) and (len(plain) > 1 or bool(choices))
        mapping = get_origin(kinds[0]) is dict
        kind: Any = plain[0] if len(plain) == 1 and not mixed else str
        yield Option(
            path=path,
            names=tuple(names),
            kind=list[str] if path == (LIBRARY_OPTIONS,) else kind,
            choices=choices,
            number_or_word=mixed,
            mapping=mapping,
            help=_help(field, choices),
            panel=panel,
        )


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a setting can be, without None."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _kinds(one)
    elif origin is Annotated or origin is tuple:
        yield from _kinds(get_args(annotation)[0])
    elif annotation is not type(None):
        yield annotation


def _help(field: FieldInfo, choices: tuple[str, ...]) -> str:
    """The field's docstring, with what it can be and what it is by default."""
    said = " ".join((field.description or "").split())
    said = re.sub(r"`(\w+)`", lambda found: "--" + found[1].replace("_", "-"), said)
    bounds = [
        f"{words} {getattr(one, attribute):g}"
        for one in field.metadata
        for kind, (attribute, words) in BOUNDS.items()
        if isinstance(one, kind) and getattr(one, attribute) != 2**32
    ]
    facts = [_one_of(choices)] if not all(word in said for word in choices) else []
    facts += bounds
    default = field.get_default(call_default_factory=True)
    if default is not PydanticUndefined and default not in (None, (), {}) and "default" not in said.lower():
        facts.append(f"default {_default(default)}")
    return f"{said} ({'; '.join(facts)})" if facts else said


def _one_of(choices: tuple[str, ...]) -> str:
    return " or ".join((", ".join(choices[:-1]), choices[-1])) if len(choices) > 1 else choices[0]


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
