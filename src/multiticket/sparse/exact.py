"""Values in full precision in an optimiser's state, so that whoever saves and loads that resumes at the same bits.

Every trainer keeps a model's weights and an optimiser's ``state_dict()``. Weights of 16 bits are the values rounded;
what rounding hides would be lost. So the values go into the state that is saved, beside the moments, and come back out
of it before the first step. The weights decide: a value counts where it rounds to what the weight holds; what weights
were given from elsewhere stays.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from multiticket.sparse.sharded import local

if TYPE_CHECKING:
    from multiticket.sparse.attachment import Attachment

KEY = "ticket_values"
"""Of a parameter's values in its optimiser's state."""


def with_values(
    optimizer: Optimizer, saved: dict[str, Any], attachments: Collection[Attachment]
) -> dict[str, Any]:
    """An optimiser's ``state_dict()`` with the values that ``attachments`` have in it, where weights round them."""
    rounded = [one for one in attachments if _rounds(one)]
    state = dict(saved["state"])
    for group, packed in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, index in zip(group["params"], packed["params"], strict=True):
            if any(attachment.rounded_as(parameter) for attachment in rounded):
                state[index] = {**state.get(index, {}), KEY: parameter.detach()}
    return {**saved, "state": state}


def take_loaded(optimizer: Optimizer, attachments: Collection[Attachment]) -> None:
    """Take the values that were loaded with the optimiser's state, once, and leave the state as it is without them."""
    for parameter, state in optimizer.state.items():
        if isinstance(state, dict) and KEY in state:
            loaded = state.pop(KEY)
            for attachment in attachments:
                _take(attachment, parameter, loaded)


def _rounds(attachment: Attachment) -> bool:
    return any(dtype.itemsize < values.dtype.itemsize for values, dtype in attachment.values_by_dtype())


@torch.no_grad()
def _take(attachment: Attachment, parameter: Tensor, loaded: Tensor) -> None:
    if loaded.shape != parameter.shape:
        raise ValueError(
            f"The loaded optimizer holds {loaded.numel():,} values where the mask has {parameter.numel():,}; resume "
            "with the mask that was saved."
        )
    mine, exact = local(parameter), local(loaded).to(parameter.device, parameter.dtype)
    for piece, dtype in attachment.rounded_as(parameter):
        same = exact[piece].to(dtype) == mine[piece].to(dtype)
        mine[piece] = torch.where(same, exact[piece], mine[piece])
