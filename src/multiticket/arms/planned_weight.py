"""A masked weight on the meta device, to count what the engine keeps: the engine's own class without content."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multiticket.arms.state import State, count_state, storage_bytes
from multiticket.mask import Mask
from multiticket.mask.names import masked_candidates
from multiticket.sparse.attachment import find_readers
from multiticket.sparse.autograd.scale import connected_view
from multiticket.sparse.direct.layers import convert
from multiticket.sparse.direct.weight import MaskedWeight
from multiticket.sparse.gradient.choice import choose_method
from multiticket.sparse.gradient.crop import crop, row_starts


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


def attach_planned(model: nn.Module, mask: Mask, device: str) -> State:
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
    return count_state(
        held,
        model.buffers(),
        values,
        values=storage_bytes(values),
        positions=storage_bytes(positions),
        kept=storage_bytes(own) - storage_bytes(positions),
    )


def _own_tensors(weight: MaskedWeight) -> list[Tensor]:
    """What the engine keeps for one weight on its device, whatever it is called, beside the model's parameters."""
    _ = weight.positions
    if weight.dense.dim() == 2:
        _ = weight.starts  # made when first asked for
    held = [*vars(weight).values(), *(vars(weight._crop).values() if weight._crop is not None else ())]
    return [t for t in held if isinstance(t, Tensor) and t.is_meta and not isinstance(t, nn.Parameter)]
