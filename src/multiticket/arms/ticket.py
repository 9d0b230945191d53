"""Training the values at a mask's positions, and keeping them as a ticket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.arms.masks import build_mask
from multiticket.arms.protocol import (
    Arm,
    Prepared,
    Products,
    Reference,
    Which,
    Work,
    base_of,
    root_mean_square,
)
from multiticket.arms.start import attach_start
from multiticket.arms.state import State, count_state, kept_by, storage_bytes
from multiticket.arms.values import VALUES_FILE, load_values
from multiticket.config import RunConfig
from multiticket.mask import Mask
from multiticket.mask.quantised import is_quantised_model
from multiticket.models import stored_dtype
from multiticket.runs.folder import RunFolder
from multiticket.sparse import Attachment, attach
from multiticket.sparse.sharded import local
from multiticket.ticket import Ticket


class AttachedModel(Prepared):
    """A model whose masked values train."""

    attachment: Attachment

    def __init__(self, attachment: Attachment, starts_trained: bool = False) -> None:
        super().__init__(attachment.model)
        self.attachment = attachment
        self.starts_trained = starts_trained

    @property
    def trained(self) -> list[nn.Parameter]:
        return list(self.attachment.parameters())

    def about(self, config: RunConfig, numel: int) -> dict[str, Any]:
        return {"method": config.method}

    def typical_weight(self) -> float:
        return root_mean_square(self.model, dict(self.attachment.named_parameters()))

    def follow(self) -> None:
        self.attachment.flush()

    def reference(self, which: Which) -> Reference:
        """The base costs nothing, since the attachment has its k values; the start, k values more."""
        return self.attachment.disabled if which == "base" else _start_of(self.attachment)

    def keep(
        self,
        folder: RunFolder,
        tokenizer: Any,
        provenance: Mapping[str, Any],
        state_dict: Mapping[str, Any] | None = None,
    ) -> Path:
        self.attachment.ticket(**provenance).save(folder.ticket)
        return folder.ticket


class TicketArm(Arm):
    name = "ticket"
    kept = "ticket.safetensors"

    def prepare(self, model: Any, tokenizer: Any, config: RunConfig) -> AttachedModel:
        if config.from_ticket is not None:
            return AttachedModel(attach_start(model, config), starts_trained=True)
        return AttachedModel(attach(model, build_mask(model, config, tokenizer)))

    def mask(self, model: Any, tokenizer: Any, config: RunConfig) -> Mask:
        return build_mask(model, config, tokenizer)

    def read(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        model, tokenizer = base_of(config)
        if not place.is_dir():
            _put_into(model, Ticket.load(place))
            return model, tokenizer
        attachment = attach(model, build_mask(model, config, tokenizer))
        load_values(attachment, place / VALUES_FILE)
        attachment.flush()
        if is_quantised_model(model):
            ticket = attachment.ticket()
            attachment.detach(keep=False)
            _put_into(model, ticket)
        else:
            attachment.detach()
        return model, tokenizer

    def shipped_dtype(self, config: RunConfig) -> str | None:
        """The base's own: ``merge`` writes a copy of its checkpoint."""
        stored = stored_dtype(config.model)
        return stored if config.dtype == "float32" and stored in ("bfloat16", "float16") else None

    def note_scores(self, kept: Path, scores: Mapping[str, Any]) -> None:
        ticket = Ticket.load(kept)
        provenance = {**ticket.provenance, "scores": dict(scores)}
        Ticket.from_sections(ticket.sections, provenance).save(kept)  # the same values

    def plan(
        self, model: Any, config: RunConfig, mask: Mask, batch: dict[str, Tensor], masters: bool
    ) -> tuple[Any, State]:
        """Bookkeeping is the base's values, those written last, where rows start, and what a first step leaves."""
        held = list(model.parameters())
        attachment = attach(model, mask)
        values = list(attachment.parameters())
        model(**batch, use_cache=False).logits.sum().backward()
        for one in values:
            one.grad = None
        positions, kept = kept_by(attachment)
        return model, count_state(
            held, model.buffers(), values, values=storage_bytes(values), positions=positions, kept=kept
        )

    def head(self, tile: int, hidden: int, gradient: int, block: int) -> int:
        return hidden + max(tile, block)

    def work(self, products: Products) -> Work:
        spared = 0 if products.embedding else products.spared
        return Work(weight_gradient=products.trained, input_gradient=-spared)


def _put_into(model: nn.Module, ticket: Ticket) -> None:
    """For good, or for as long as the model is there: quantised weights hold no other values than their own."""
    if is_quantised_model(model):
        ticket.apply(model)
    else:
        ticket.merge(model)


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


ARM = TicketArm()
