"""What a step should cost: multiplications and additions, and bytes that the optimiser moves.

Let b be the operations of the forward pass's products with weights, 2 for each weight and token (the tied head
included). The gradient with respect to inputs takes b again, the gradient with respect to weights b again. So

- the floor, forward and input gradient with nothing trained, is 2 b, and with attention a little more;
- full training is 3 b, and its optimiser moves 28 bytes a parameter (fp32 AdamW reads weight, gradient and two
  moments, writes weight and two moments);
- a ticket is 2 b and its density of b, since each trained value's gradient is one product over the tokens;
- LoRA adds two thin products a layer, and each three times: forward, input gradient, weight gradient;
- SHiRA computes the whole weight gradient of the layers it adapts, and copies their weights.

Where nothing below the first block's query, key and value trains (LoRA, SHiRA, a ticket in the linear layers), these
need no input gradient, which spares a little.

Not in the prediction: transposes, norms, activations and softmax, and how much slower scattered products run than
dense ones. The difference between the measured ratio and the predicted one is what those cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from multiticket.arms import get
from multiticket.arms.protocol import Products, Work
from multiticket.research.bench.shapes import Shape
from multiticket.research.bench.timed_arms import FLOOR, Arm, expected_values

ADAMW_READS_AND_WRITES = 7


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one step by phase (a multiplication and an addition are two)."""

    forward: float
    input_gradient: float
    weight_gradient: float
    optimizer_bytes: float
    """Read and written by AdamW where values, gradients and moments are fp32."""

    @property
    def total(self) -> float:
        return self.forward + self.input_gradient + self.weight_gradient


def predict(shape: Shape, arm: Arm, batch: int, tokens: int) -> Operations:
    """Operations of one step over ``batch`` rows of ``tokens`` tokens."""
    rows = batch * tokens
    everything = shape.linear_entries + shape.vocabulary * shape.width
    attention = attention_operations(shape, batch, tokens)
    trained = expected_values(shape, arm)
    work = Work(0)
    if arm.kind != FLOOR:
        settings = arm.settings(shape)
        products = Products(
            everything=everything,
            linear=shape.linear_entries,
            first=[shape.linear[name] for name in ("q_proj", "k_proj", "v_proj")],
            trained=trained,
            rank=arm.rank or 0,
            embedding=settings.scope == "all",
        )
        work = get(settings.arm).work(products)
    return Operations(
        forward=2.0 * rows * (everything + work.forward) + attention,
        input_gradient=2.0 * rows * (everything + work.input_gradient) + 2.5 * attention,
        weight_gradient=2.0 * rows * work.weight_gradient,
        optimizer_bytes=4.0 * ADAMW_READS_AND_WRITES * trained,
    )


def attention_operations(shape: Shape, batch: int, tokens: int) -> float:
    """Forward: two products of (tokens, head) matrices for each head and row, the masked half counted too.

    Backward with a flash kernel is five such products, 2.5 times as much.
    """
    return 4.0 * batch * tokens * tokens * shape.width * shape.layers


def predicted_over_floor(shape: Shape, arm: Arm, batch: int, tokens: int) -> float:
    """Operations of ``arm`` over those of the floor; the optimiser's traffic is not in it."""
    return predict(shape, arm, batch, tokens).total / predict(shape, Arm(FLOOR, FLOOR), batch, tokens).total
