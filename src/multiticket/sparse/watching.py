"""Every optimiser of the process is watched: whichever steps an attachment's values, they reach their weights."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from multiticket.sparse.exact import take_loaded, with_values

if TYPE_CHECKING:
    from multiticket.sparse.attachment import Attachment

_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_hooks: list[Any] = []
_saving: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def watch(attachment: Attachment) -> None:
    """Have the attachment told of the steps that optimisers take over its values."""
    _attachments.add(attachment)
    _watch_every_optimizer()


def unwatch(attachment: Attachment) -> None:
    """Tell it no more."""
    _attachments.discard(attachment)


def attachments_of(parameters: Iterable[Tensor]) -> list[Attachment]:
    """The attachments that an optimiser over these parameters trains."""
    return _over({id(parameter) for parameter in parameters})


@contextmanager
def watched_by(attachments: Collection[Attachment]) -> Iterator[None]:
    """Within, these alone watch optimisers, and where there are none nobody does: as in a process without others."""
    others = [attachment for attachment in _attachments if attachment not in attachments]
    _attachments.difference_update(others)
    if not attachments:
        while _hooks:
            _hooks.pop().remove()
    try:
        yield
    finally:
        _attachments.update(others)
        if others:
            _watch_every_optimizer()


def _watch_every_optimizer() -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
        _hooks.append(register_optimizer_step_post_hook(_after_step))


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    stepped = _stepped(optimizer)
    attachments = _over(stepped)
    for attachment in attachments:
        attachment._before_step(stepped)
    if attachments:
        take_loaded(optimizer, attachments)


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    stepped = _stepped(optimizer)
    attachments = _over(stepped)
    for attachment in attachments:
        attachment._after_step(stepped)
    if attachments and optimizer not in _saving:
        _saving.add(optimizer)
        optimizer.register_state_dict_post_hook(_save_values)


def _save_values(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return with_values(optimizer, saved, _over(_stepped(optimizer)))


def _stepped(optimizer: Optimizer) -> set[int]:
    """The ``id`` of each parameter that it steps."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _over(parameters: set[int]) -> list[Attachment]:
    """The attachments that an optimiser over these parameters, by ``id``, trains."""
    return [attachment for attachment in list(_attachments) if attachment._holds_any(parameters)]
