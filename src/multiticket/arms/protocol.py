"""What an arm must say: how it makes a model ready, what trains then, and how that is kept, read back and counted.

An arm is a file ``arms/NAME.py`` with an :class:`Arm` called ``ARM``, and a line in :mod:`multiticket.arms.facts`.
Its :meth:`Arm.prepare` gives a :class:`Prepared`, which a run trains.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from multiticket.arms.facts import ARMS, Facts
from multiticket.arms.state import State
from multiticket.config import RunConfig
from multiticket.mask import Mask, masked_candidates
from multiticket.mask.quantised import is_quantised
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.sparse import Attachment
from multiticket.sparse.sharded import is_sharded, reshard

Which = Literal["base", "start"]
Reference = Callable[[], AbstractContextManager[None]]
"""Gives a context in which the model is the reference policy and no gradient is recorded; afterwards every weight is
what it was, bit for bit."""


class Prepared(ABC):
    """A model that an arm has made ready to train."""

    attachment: Attachment | None = None
    """Of a mask; None where the model's own or an adapter's parameters train."""
    starts_trained: bool = False
    """Whether it begins with values that were trained before, and not as the base."""

    def __init__(self, model: Any) -> None:
        self.model = model
        """What is trained: the base, or what wraps it."""
        self._count: int | None = None

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimiser steps."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def nnz(self) -> int:
        """Number of values that train."""
        if self._count is None:
            return sum(parameter.numel() for parameter in self.trained)
        return self._count

    def about(self, config: RunConfig, numel: int) -> dict[str, Any]:
        """Entries of ``result.json`` that this arm has, of a model of `numel` parameters."""
        return {"method": None}

    def typical_weight(self) -> float | None:
        """Root mean square of the weights that train, which bounds a rate found by KL; None for no bound."""
        return root_mean_square(self.model, dict(self.model.named_parameters()))

    def follow(self) -> None:
        """After what is trained has been changed by other means than the optimiser's step."""
        reshard(self.model)

    def let_go(self) -> None:
        """Give back the memory of all weights: nothing is asked from now on but ``nnz`` and ``about``.

        Not of weights that FSDP2 shards or that are quantised, which know no other device.
        """
        self._count = self.nnz  # ties do not survive
        weights = list(self.model.parameters())
        if not any(is_sharded(weight) or is_quantised(weight) for weight in weights):
            self.model.to("meta")

    @abstractmethod
    def reference(self, which: Which) -> Reference:
        """How to show the KL penalty's reference policy. Call it before the run has changed anything.

        Args:
            which: ``base``, the model without what was trained; ``start``, what the run began with, which differs where
                it goes on from a ticket.
        """

    @abstractmethod
    def keep(
        self,
        folder: RunFolder,
        tokenizer: Any,
        provenance: Mapping[str, Any],
        state_dict: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write what was trained into a run's folder, whole or not at all; where it lies.

        Args:
            state_dict: the model's weights, where ranks share them; an attachment knows its values without.
        """

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Any] | None = None) -> None:
        """The model as Hugging Face's libraries keep it; `state_dict`: its weights, where ranks share them."""
        self.model.save_pretrained(folder, state_dict=state_dict)


@dataclass(frozen=True)
class Products:
    """Multiplications of one token in one forward pass of a model, for :meth:`Arm.work`."""

    everything: int
    """In all products with weights, the head's too."""
    linear: int
    """In the linear layers of all blocks."""
    first: Sequence[tuple[int, int]]
    """(out, in) of the layers that read the first block's input."""
    trained: int
    """Number of values that train."""
    rank: int
    """Of an adapter."""
    embedding: bool
    """Whether a ticket's mask covers the embedding."""

    @property
    def spared(self) -> int:
        """Of the input gradient, where nothing below the first block trains."""
        return sum(rows * columns for rows, columns in self.first)


@dataclass(frozen=True)
class Work:
    """Multiplications of one token that an arm adds to a forward pass and its gradient with respect to inputs."""

    weight_gradient: int
    forward: int = 0
    input_gradient: int = 0
    """Below zero where some of it is spared."""


class Arm(ABC):
    """One way of training."""

    name: str
    kept: str
    """What it keeps, by its name in a run's folder."""
    packages: tuple[str, ...] = ()
    """Libraries that its result depends on beside those of every run."""
    graph_starts_late: bool = False
    """Whether nothing before the first layer trains, so that to recompute that one, its input must start the graph."""

    @property
    def facts(self) -> Facts:
        return ARMS[self.name]

    # Train

    @abstractmethod
    def prepare(self, model: Any, tokenizer: Any, config: RunConfig) -> Prepared:
        """Make a base ready to train, in place or wrapped. ValueError for settings that do not fit it."""

    def mask(self, model: Any, tokenizer: Any, config: RunConfig) -> Mask:
        """The positions of the base that train. ValueError where there are none (``facts.has_mask``)."""
        raise ValueError(f"The {self.name} arm trains an adapter, which has no mask.")

    # Read back

    @abstractmethod
    def read(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        """A fresh model with what a run kept at `place`, or with a checkpoint of it, and the tokenizer.

        Raises:
            ValueError: a file is missing, broken, or of another base.
        """

    def read_plain(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        """The same as a model of the base's own class, all that was trained in its weights."""
        return self.read(place, config)

    def shipped_dtype(self, config: RunConfig) -> str | None:
        """Of the weights into which what it keeps is merged for others, where that rounds it; else None."""
        return None

    def note_scores(self, kept: Path, scores: Mapping[str, Any]) -> None:  # noqa: B027
        """Write the run's scores into what it kept, where that has a place for them."""

    # Count

    @abstractmethod
    def plan(
        self, model: Any, config: RunConfig, mask: Mask, batch: dict[str, Tensor], masters: bool
    ) -> tuple[Any, State]:
        """A model on the meta device as this arm would train it, and the bytes of its state. Within `planned_for`.

        Args:
            mask: the ticket's; an adapter whose rank is not given trains as many values.
            batch: what a forward pass reads, on the meta device.
            masters: count fp32 master weights where all weights of a smaller dtype train.
        """

    def head(self, tile: int, hidden: int, gradient: int, block: int) -> int:
        """Bytes that the fused head holds in the backward pass.

        Args:
            tile: of logits; hidden: the states it saves and their gradient. `gradient`: the head's own, in fp32.
            block: what a masked head's gradient takes in the place of a tile.
        """
        return tile + hidden

    def notes(self, config: RunConfig) -> list[str]:
        """What a person should know of a run with these settings."""
        return []

    def kept_dtype(self, config: RunConfig) -> str:
        """Of the values in what it keeps."""
        return config.dtype

    @abstractmethod
    def work(self, products: Products) -> Work:
        """What one token costs in a step beyond forward and input gradient of the model as it is."""


def base_of(config: RunConfig) -> tuple[Any, Any]:
    """The base that a run starts from, and its tokenizer."""
    return load_model(config.model, config.dtype)


def root_mean_square(model: Any, trained: Mapping[str, nn.Parameter]) -> float:
    """Of what trains, by tensor name: of matrices, or of all where no matrix does."""
    shapes = {name: parameter.dim() for name, parameter in masked_candidates(model).items()}
    matrices = [values for name, values in trained.items() if shapes.get(name, 0) >= 2]
    chosen = [values.detach().float() for values in matrices or trained.values()]
    squares = sum(float(values.square().sum()) for values in chosen)
    return math.sqrt(squares / max(1, sum(values.numel() for values in chosen)))
