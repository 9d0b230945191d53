"""Attaching is all or nothing: what a model was before, put back should attaching fail on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Leave ``model`` as it was (classes, parameters, hooks, attributes, ``requires_grad``) where the block raises."""
    modules = list(model.modules())
    classes = [type(module) for module in modules]
    attributes = [dict(module.__dict__) for module in modules]
    tables = [
        {key: dict(value) for key, value in held.items() if isinstance(value, dict)} for held in attributes
    ]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, held, own in zip(modules, classes, attributes, tables, strict=True):
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(held)
            for key, content in own.items():
                held[key].clear()
                held[key].update(content)
        for parameter, required in trained:
            parameter.requires_grad_(required)
        raise
