"""The masks that are compared, by short names, made as a run with the same settings makes them."""

from __future__ import annotations

from typing import Any

from multiticket.arms.masks import build_mask
from multiticket.config import RunConfig, build
from multiticket.mask import Mask

CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "first-layer": ("layers", {"layers": "first"}),
    "last-layer": ("layers", {"layers": "last"}),
    "attention": ("modules", {"modules": "attention"}),
    "mlp": ("modules", {"modules": "mlp"}),
    "embeddings": ("modules", {"modules": "embeddings"}),
    "columns": ("columns", {}),
    "rows": ("rows", {}),
    "blocks": ("blocks", {}),
    "magnitude": ("magnitude", {}),
    "principal": ("principal", {}),
    "off-principal": ("off-principal", {}),
    "fisher": ("fisher", {}),
}
"""Method and options of each."""


def settings(control: str, density: float, seed: int, model: str, task: str) -> RunConfig:
    """A ticket run's settings with this mask. Raises ValueError for a name that is not known or a bad density."""
    if control not in CONTROLS:
        raise ValueError(f"There is no mask {control!r} to compare: choose among {', '.join(CONTROLS)}.")
    method, options = CONTROLS[control]
    asked = {"method": method, "mask_options": options, "density": density, "seed": seed}
    return build({"task": task, "model": model, "arm": "ticket", **asked})


def control_mask(model: Any, tokenizer: Any, config: RunConfig) -> Mask | str:
    """The mask, or the sentence that says why there is none on this model (a budget that does not fit a layer)."""
    try:
        return build_mask(model, config, tokenizer)
    except ValueError as error:
        return str(error)
