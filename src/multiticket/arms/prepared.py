"""A model that was made ready elsewhere, as the trainer takes it: plain, with a PEFT adapter, or with an attachment."""

from __future__ import annotations

from typing import Any

from multiticket.arms.adapter import AdaptedModel
from multiticket.arms.full import WholeModel
from multiticket.arms.protocol import Prepared
from multiticket.arms.ticket import AttachedModel
from multiticket.sparse import Attachment


def as_prepared(model: Any, attachment: Attachment | None) -> Prepared:
    """What trains in `model`: an attachment's values, the adapter of a PEFT model, or every parameter."""
    if attachment is not None:
        return AttachedModel(attachment)
    return AdaptedModel(model) if hasattr(model, "peft_config") else WholeModel(model)
