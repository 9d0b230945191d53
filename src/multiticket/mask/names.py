"""Which tensors of a model a mask may choose from, and what they are called."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch

from multiticket.mask.quantised import is_quantised, logical_shape

VALUES_SUFFIX = "__values"
"""Ends the name of the parameter that holds the trained values of the weight named before it."""

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def canonical_name(name: str) -> str:
    """The parameter's name without what DDP, FSDP, ``torch.compile`` or checkpointing wrapped around it.

    ``module._orig_mod.lm_head.weight`` and ``lm_head.weight`` are one tensor, and must get one mask.
    """
    return ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)


def masked_candidates(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Every floating-point parameter of ``model`` by its canonical name, in the model's order, and every quantised one.

    A quantised weight may be held in another shape and dtype than the dense weight it stands for (`quantised.py`). A
    tied tensor appears once, under its first name; an attachment's own values do not appear.
    The parameters may live on any device, ``meta`` included.
    """
    candidates: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        counts = parameter.is_floating_point() or is_quantised(parameter)
        if counts and not name.endswith(VALUES_SUFFIX):
            name = canonical_name(name)
            assert name not in candidates, f"two parameters are called {name}"
            candidates[name] = parameter
    return candidates


def candidate_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The (global) shape of every candidate tensor, by canonical name, in the model's order; of a quantised one, its
    dense weight's."""
    return {name: logical_shape(parameter) for name, parameter in masked_candidates(model).items()}


def frozen_by_choice(model: torch.nn.Module) -> set[str]:
    """Tensors that the model's author or its user has frozen: those that take no gradient where others do.

    Where nothing takes a gradient (a model loaded to be looked at, or attached), nobody has chosen: the set is empty.
    Quantised weights take none by nature.
    """
    candidates = {name: p for name, p in masked_candidates(model).items() if type(p) is torch.nn.Parameter}
    frozen = {name for name, parameter in candidates.items() if not parameter.requires_grad}
    return frozen if len(frozen) < len(candidates) else set()


def in_scope(name: str, scope: str) -> bool:
    """Whether ``scope`` (``"all"``, or name patterns as in a shell, separated by commas) covers ``name``."""
    return scope == "all" or any(fnmatchcase(name, pattern.strip()) for pattern in scope.split(","))
