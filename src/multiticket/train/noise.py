"""Noise that a model adds to its training passes, and log-probabilities without it.

A step's KL compares two passes over the same tokens. Where a pass draws dropout, or NEFTune's noise on the embeddings,
the difference would be the noise's, whatever the step did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_WORDS = ("drop", "jitter")


def trains_with_noise(model: nn.Module, neftune_noise_alpha: float | None = None) -> bool:
    """Whether two training passes of ``model`` over the same tokens differ.

    Asks for ``nn.Dropout`` and its kin, and for the probabilities that transformers' layers keep as attributes.
    """
    return bool(neftune_noise_alpha) or any(_draws(module) for module in model.modules())


def _draws(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(
        isinstance(value, float) and value > 0 and any(word in name for word in _WORDS)
        for name, value in vars(module).items()
    )


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """The model as it is evaluated; behind the block each of its modules trains as it did."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
