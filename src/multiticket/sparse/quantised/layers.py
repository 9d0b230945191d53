"""What a quantised layer does while a mask is attached: products with the copy of its weight that holds the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.mask.quantised import TORCHAO, linear, multiply
from multiticket.sparse.hooked.plan import LinearPlan
from multiticket.sparse.quantised.functions import QuantisedLinear, WholeWeight


def can_be_read_past_its_layer(weight: Tensor) -> bool:
    """Whether others multiply with it, as TRL's fused head does: torchao's. bitsandbytes' are packed bytes."""
    return type(weight).__name__ in TORCHAO


def members_of_quantised(plan_of: Callable[[nn.Module], LinearPlan], read_past_it: bool) -> dict[str, Any]:
    """What the class of a masked quantised layer gets beside its own.

    Args:
        plan_of: of such a layer.
        read_past_it: whoever reads the layer's weight gets the dense one, with the values in it.
    """

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        plan = plan_of(self)
        return multiply(self, x, lambda x, bias: _product(plan, x, bias))

    def weight(self: nn.Module) -> Tensor:
        plan = plan_of(self)
        if not torch.is_grad_enabled():
            return plan.tensor.fresh_dense()
        dense: Any = WholeWeight.apply(plan.tensor.leaf, plan)
        dense._masked_weight = plan.tensor  # for TRL's fused head
        return dense

    if read_past_it:
        return {"forward": forward, "weight": property(weight)}
    return {"forward": forward}


@torch.compiler.disable
def _product(plan: LinearPlan, x: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled():
        return QuantisedLinear.apply(x, bias, plan.tensor.leaf, plan)
    return linear(x, plan.tensor.fresh_dense(), bias)
