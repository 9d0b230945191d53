"""What stands after the @ in a task's name: `my:score@data.jsonl,test=held_out.jsonl` or `NAME@option=value,...`."""

from __future__ import annotations

import re
from typing import Any

_NEXT = re.compile(r",(?=[A-Za-z_][A-Za-z0-9_]*=)")
_OPTION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def split_options(text: str) -> tuple[str | None, dict[str, str]]:
    """What comes first without a name, if anything does, and the values by their names, as they are written.

    Raises ValueError for a name that is given twice, or a second value without a name.
    """
    first: str | None = None
    values: dict[str, str] = {}
    for number, part in enumerate(_NEXT.split(text)):
        found = _OPTION.fullmatch(part)
        if found is None:
            if number or not part:
                raise ValueError(f"Write options as name=value, separated by commas, not {text!r}.")
            first = part
        elif found[1] in values:
            raise ValueError(f"The option {found[1]} is given twice in {text!r}: give it once.")
        else:
            values[found[1]] = found[2]
    return first, values


def value_of(name: str, text: str) -> Any:
    """An option's value, read as YAML: `3`, `true`, `0.5`, `[a, b]`, `words`. ValueError where it cannot be read."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"The option {name} cannot be read: {text!r}.") from None
    return (
        float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d+", value) else value
    )


def whole_number(name: str, text: str) -> int:
    """An option that counts something, 1 or more. ValueError for anything else."""
    value = value_of(name, text)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"The option {name} must be a whole number of at least 1, not {text!r}.")
    return value


def refuse_unknown(values: dict[str, Any], known: tuple[str, ...], task: str) -> None:
    """Raises ValueError for an option that is none of `known`."""
    for name in values:
        if name not in known:
            raise ValueError(f"{task} has no option {name!r}; its options are {', '.join(known)}.")
