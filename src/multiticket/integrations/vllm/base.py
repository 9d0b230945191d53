"""Find a mask's places in an engine and make sure that the engine holds the base that the ticket was trained on."""

from __future__ import annotations

import torch
from torch import nn

from multiticket.integrations.vllm.places import Places, locate
from multiticket.integrations.vllm.ranks import Ranks
from multiticket.mask import Mask, fingerprint


def checked_places(
    model: nn.Module, mask: Mask, expected: str, ranks: Ranks, dtype: torch.dtype, reason: str | None = None
) -> Places:
    """The mask's places, once every worker has said yes and the base's fingerprint is the expected one.

    The fingerprint is of what is read back at those places, so it tells a wrong place as surely as a wrong base.
    Raises ValueError on all workers alike.

    Args:
        reason: a sentence with which this worker refuses beforehand.
    """
    places = None
    try:
        if reason is None:
            places = locate(model, mask, dtype)
    except ValueError as error:
        reason = str(error)
    ranks.agree(reason)
    assert places is not None
    values, found = ranks.union(*places.read())
    by_name = dict(
        zip(mask.names, zip(*(t.split(_counts(mask)) for t in (values, found)), strict=True), strict=True)
    )
    for name, (_, has) in by_name.items():
        if not has.all():
            raise ValueError(
                f"The engine cannot take a ticket: its loader leaves out {name}, or copies only a part of it."
            )
    now = fingerprint(mask, lambda name: by_name[name][0])
    if now != expected:
        raise ValueError(
            "This ticket belongs to another base: the engine's weights at its positions are not those it was trained "
            f"from (fingerprint {expected[:12]}, found {now[:12]}). Serve that base, in its own dtype or fp32."
        )
    return places


def _counts(mask: Mask) -> list[int]:
    return [mask.count(name) for name in mask.names]
