"""Each arm of training as a model on the meta device, and the bytes of its state.

The state is counted on the tensors themselves, not computed by formula: a ticket's come from the engine's own
``MaskedWeight``, LoRA's from PEFT. On the meta device they have shapes and dtypes and take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.names import masked_candidates
from multiticket.sparse.attachment import find_readers
from multiticket.sparse.autograd.scale import connected_view
from multiticket.sparse.direct.layers import convert
from multiticket.sparse.direct.weight import MaskedWeight
from multiticket.sparse.gradient.choice import choose_method
from multiticket.sparse.gradient.crop import crop, row_starts

STATE = ("weights", "buffers", "values", "gradients", "moments", "positions", "bookkeeping")
"""Components of a model's state, in the order they are shown."""
MASTER = torch.float32
"""Of gradients, moments and what the optimiser steps."""


class PlannedWeight(MaskedWeight):
    """A masked weight on the meta device: connected to its values, with no content to keep fresh."""

    planned_for = torch.device("cuda")
    """Where it will train: what a layer keeps of its input depends on how its gradient is computed there."""

    @property
    def method(self) -> str:
        return choose_method(self.planned_for, *self.crop.shape, self.positions.numel(), self.dense.dtype)

    def fresh_dense(self) -> Tensor:
        return self.dense

    def plan_crop(self, mask: Mask) -> None:
        """Crop as the engine will, by the mask's own positions, where the mask may leave lines untouched.

        Scattered positions leave hardly any: with two expected in each line, one line in seven.
        """
        if len(self.shape) != 2:
            return
        each_line = (mask.rule.density or 0.0) * min(self.shape)
        scattered = mask.rule.method in ("random", "numpy") and each_line >= 2
        if not scattered:
            positions = mask.indices(self.name).int()
            found = crop(positions, row_starts(positions, *self.shape), *self.shape)
            if found.shape != tuple(self.shape):
                self._crop = found.to(torch.device("meta"))

    def connected(self) -> Tensor:
        dense = self.dense
        return connected_view(self.values, dense, self.positions) if self.trains else dense


def make_full(model: nn.Module) -> dict[str, int]:
    """State of training every parameter as the paper does: 18 bytes a parameter of a bf16 model.

    fp32 master weights beside a bf16 or fp16 model (an fp32 model is its own master), fp32 gradients, two fp32
    moments.
    """
    parameters = list(model.parameters())
    masters = [parameter for parameter in parameters if parameter.dtype != MASTER]
    return _state(model, parameters, parameters, values=sum(p.numel() for p in masters) * MASTER.itemsize)


def make_ticket(model: nn.Module, mask: Mask, device: str = "cuda") -> dict[str, int]:
    """Attach ``mask`` to a model on the meta device as on ``device``, and give its state.

    Bookkeeping is what the engine keeps beside values and positions: the base's entries, the entries written last,
    where rows start.
    """
    parameters = masked_candidates(model)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    held = list(model.parameters())
    readers = find_readers(model)
    weights: list[PlannedWeight] = []
    by_module: dict[nn.Module, dict[str, MaskedWeight]] = {}
    for name in mask.names:
        places = readers[id(parameters[name])]
        unknown = torch.empty(mask.count(name), dtype=torch.int64, device="meta")
        weight = PlannedWeight(name, *places[0], unknown)
        weight.planned_for = torch.device(device)
        weight.plan_crop(mask)
        weights.append(weight)
        for module, attribute in places:
            by_module.setdefault(module, {})[attribute] = weight
    for module, masked in by_module.items():
        convert(module, masked)
    values = [weight.values for weight in weights]
    own = [t for weight in weights for t in _own_tensors(weight)]
    positions = [weight.positions for weight in weights]
    return _state(
        model,
        held,
        values,
        values=_bytes(values),
        positions=_bytes(positions),
        kept=_bytes(own) - _bytes(positions),
    )


def make_lora(model: Any, rank: int) -> tuple[nn.Module, dict[str, int]]:
    """PEFT's LoRA of ``rank`` on every linear layer but the head, and its state: fp32 adapters over a frozen base.

    Raises:
        ValueError: PEFT is not installed, or does not know how to adapt this model.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ValueError(
            "The lora arm needs PEFT: pip install 'multiticket[peft]', or leave lora out of --arms."
        ) from None
    held = list(model.parameters())
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"PEFT refuses LoRA on all linear layers of {model.config.model_type}: {reason}; leave lora out of --arms."
        ) from None
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return adapted, _state(adapted, held, trained, values=_bytes(trained))


def _own_tensors(weight: MaskedWeight) -> list[Tensor]:
    """What the engine keeps for one weight on its device, whatever it is called, beside the model's parameters."""
    _ = weight.positions
    if weight.dense.dim() == 2:
        _ = weight.starts  # made when first asked for
    held = [*vars(weight).values(), *(vars(weight._crop).values() if weight._crop is not None else ())]
    return [t for t in held if isinstance(t, Tensor) and t.is_meta and not isinstance(t, nn.Parameter)]


def _state(
    model: nn.Module,
    held: Iterable[Tensor],
    trained: Iterable[Tensor],
    values: int,
    positions: int = 0,
    kept: int = 0,
) -> dict[str, int]:
    trained = list(trained)
    count = sum(tensor.numel() for tensor in trained)
    step_counters = MASTER.itemsize * len(trained)  # AdamW keeps one number a tensor
    return {
        "weights": _bytes(held),
        "buffers": _bytes(model.buffers()),
        "values": values,
        "gradients": count * MASTER.itemsize,
        "moments": 2 * count * MASTER.itemsize,
        "positions": positions,
        "bookkeeping": kept + step_counters,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Each storage once: tied weights are held once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
