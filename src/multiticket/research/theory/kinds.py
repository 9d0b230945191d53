"""The kind of a tensor, as the tables group them."""

from __future__ import annotations

from multiticket.mask.selectors import module_kind


def kind_of(name: str) -> str:
    """``bias`` for whatever is called so, else embeddings, attention, mlp or norms by the usual names, else
    ``other``.
    """
    return "bias" if name.split(".")[-1] == "bias" else module_kind(name) or "other"
