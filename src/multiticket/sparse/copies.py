"""Copies of an attached model: a copy of the whole has an attachment of its own, one of a part is a plain part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

NO_PICKLE = (
    "A model with an attachment cannot be pickled; save attachment.ticket() or attachment.state_dict(), or detach it "
    "first."
)

OTHER_CLASS = (
    "A {} was given another class while it had an attachment (a parametrisation, perhaps), which cannot be undone; "
    "undo that first."
)


def copied_by(cls: type[nn.Module], copier: Callable[[Any, dict[int, Any]], Any]) -> None:
    """Let ``copy.deepcopy`` copy modules of exactly this class by ``copier(module, memo)``.

    A method ``__deepcopy__`` would be found by wrappers that hand on unknown attributes (PEFT's, ``torch.compile``'s),
    whose copies would be copies of the wrapped model.
    """
    copy._deepcopy_dispatch[cls] = copier  # type: ignore[attr-defined]


def copy_part(
    module: nn.Module,
    plain: type[nn.Module],
    memo: dict[int, Any],
    attributes: set[str],
    values: set[str],
    required_grad: dict[str, bool],
) -> nn.Module:
    """A copy of one converted module without anything of its attachment: what it is without one.

    Args:
        module: with children, which make their own copies.
        plain: its class before it was converted.
        memo: ``copy.deepcopy``'s.
        attributes: that the attachment put there.
        values: parameters that it put there.
        required_grad: by parameter's attribute, whether it took a gradient before attaching.
    """
    twin = plain.__new__(plain)
    memo[id(module)] = twin
    for name, value in module.__dict__.items():
        if name == "_parameters":
            value = {key: parameter for key, parameter in value.items() if key not in values}
        if name not in attributes:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    for attribute, required in required_grad.items():
        parameter = twin._parameters.get(attribute)
        if parameter is not None:
            parameter.requires_grad_(required)
    if isinstance(twin, nn.RNNBase):
        twin._flat_weights = [getattr(twin, name, None) for name in twin._flat_weights_names]
    return twin
