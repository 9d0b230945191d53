"""The reference policy of the KL penalty, without a second model: its weights are swapped in for a forward pass.

A reference is a function that gives a context in which the model is the reference policy and no gradient is
recorded; afterwards every weight is what it was, bit for bit. What that takes: for a ticket nothing for the base
(the attachment has its k values) and k values for the start of the run; for LoRA nothing; for the full arm a copy
of all weights, since none of them stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multiticket.sparse import Attachment
from multiticket.sparse.sharded import is_sharded, local

Which = Literal["base", "start"]
Reference = Callable[[], AbstractContextManager[None]]


def make_reference(model: Any, attachment: Attachment | None, which: Which) -> Reference:
    """How to show the reference policy in `model`. Call it before the run has changed anything.

    Args:
        attachment: what is trained; None for LoRA (a PEFT model) and the full arm, which both start at the base.
        which: ``base``, the model under the ticket; ``start``, what the trained values are now, which differs
            where a run continues from a ticket.

    Raises:
        ValueError: the full arm on a model that FSDP2 shards.
    """
    if attachment is not None:
        return attachment.disabled if which == "base" else _start_of(attachment)
    if hasattr(model, "disable_adapter"):
        return _without_adapter(model)
    return _copy_of(model)


def _start_of(attachment: Attachment) -> Reference:
    start = [local(values).clone() for values in attachment.parameters()]

    @contextmanager
    def shown() -> Iterator[None]:
        now = [local(values).clone() for values in attachment.parameters()]
        with torch.no_grad():
            _put(attachment, start)
            try:
                yield
            finally:
                _put(attachment, now)

    return shown


def _put(attachment: Attachment, content: list[Tensor]) -> None:
    for values, new in zip(attachment.parameters(), content, strict=True):
        local(values).copy_(new)
    attachment.flush()


def _without_adapter(model: Any) -> Reference:
    @contextmanager
    def shown() -> Iterator[None]:
        with torch.no_grad(), model.disable_adapter():
            yield

    return shown


def _copy_of(model: nn.Module) -> Reference:
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ValueError(
            "beta above 0 with the full arm keeps a copy of all weights, which FSDP does not allow for: "
            "take beta 0, or the ticket or lora arm."
        )
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @contextmanager
    def shown() -> Iterator[None]:
        parameters = dict(model.named_parameters())
        now = {name: parameters[name].data for name in base}
        with torch.no_grad():
            for name, kept in base.items():
                parameters[name].data = kept
            try:
                yield
            finally:
                for name, data in now.items():
                    parameters[name].data = data

    return shown
