"""Shapes of the models that are measured. Weights are random: what a step costs does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_WIDTH = 64


@dataclass(frozen=True)
class Shape:
    """A Qwen2 with its head tied to its embedding."""

    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int
    vocabulary: int

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear layers of one block, by the name that PEFT and masks know them under."""
        narrow = self.width // self.heads * self.key_value_heads
        return {
            "q_proj": (self.width, self.width),
            "k_proj": (narrow, self.width),
            "v_proj": (narrow, self.width),
            "o_proj": (self.width, self.width),
            "gate_proj": (self.inner, self.width),
            "up_proj": (self.inner, self.width),
            "down_proj": (self.width, self.inner),
        }

    @property
    def tensor_sizes(self) -> list[int]:
        """Number of entries of every tensor: embedding, then each block's weights, biases and norms, then a norm."""
        matrices = [rows * columns for rows, columns in self.linear.values()]
        biases = [self.linear[name][0] for name in ("q_proj", "k_proj", "v_proj")]
        norms = [self.width, self.width]
        return [self.vocabulary * self.width, *self.layers * (matrices + biases + norms), self.width]

    @property
    def parameters(self) -> int:
        return sum(self.tensor_sizes)

    @property
    def linear_entries(self) -> int:
        """Weights of all blocks' linear layers, the modules that LoRA and SHiRA adapt."""
        return self.layers * sum(rows * columns for rows, columns in self.linear.values())

    @property
    def values_per_rank(self) -> int:
        """Values that LoRA, or SHiRA, trains on those modules for each unit of its rank."""
        return self.layers * sum(rows + columns for rows, columns in self.linear.values())


SHAPES = {
    "36M": Shape(layers=8, width=512, inner=2048, heads=8, key_value_heads=4, vocabulary=8192),
    "0.5B": Shape(layers=24, width=896, inner=4864, heads=14, key_value_heads=2, vocabulary=151936),
    "1.5B": Shape(layers=28, width=1536, inner=8960, heads=12, key_value_heads=2, vocabulary=151936),
}


def choose_shape(
    name: str, layers: int | None = None, width: int | None = None, vocabulary: int | None = None
) -> Shape:
    """The shape called ``name``, with other numbers of layers, width or words where they are given.

    Another width keeps heads of 64, one key-value head for two heads, and four times the width inside.

    Raises:
        ValueError: no such shape, a number below 1, or a width that does not divide into heads.
    """
    if name not in SHAPES:
        raise ValueError(f"There is no shape {name!r} to measure; give {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    for option, number in (("layers", layers), ("vocabulary", vocabulary)):
        if number is not None and number < 1:
            raise ValueError(f"The number of --{option} must be at least 1, but is {number}.")
    heads, narrow, inner = shape.heads, shape.key_value_heads, shape.inner
    if width is not None and width != shape.width:
        if width < 1 or width % HEAD_WIDTH:
            raise ValueError(f"The --width must be a multiple of {HEAD_WIDTH}, but is {width}.")
        heads, inner = width // HEAD_WIDTH, 4 * width
        narrow = heads // 2 if heads % 2 == 0 else 1
    return Shape(
        layers or shape.layers, width or shape.width, inner, heads, narrow, vocabulary or shape.vocabulary
    )
