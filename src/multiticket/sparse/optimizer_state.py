"""An optimiser's state, saved on one path and loaded on the other.

The direct path has one parameter a tensor, the path of accelerators one for all matrices and one for all vectors. A run
that moves from a CPU to a GPU, or back, keeps its moments: they are joined, or cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from multiticket.sparse.attachment import Attachment

Layout = list[list[str]]
"""The tensors' names in each of an optimiser's parameters, in its order."""


def load_either_layout(attachment: Attachment, optimizer: Optimizer) -> None:
    """Let ``optimizer.load_state_dict`` take a state that was saved on the other path.

    Args:
        optimizer: over all of the attachment's parameters and no others; in one group, or with vectors in a second, as
            transformers makes them.
    """
    optimizer.register_load_state_dict_pre_hook(lambda own, state: fitted(attachment, own, state))


def fitted(attachment: Attachment, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """``state`` in the layout of ``optimizer``; as it is where it has that layout already.

    Raises:
        ValueError: the state is of other values than the attachment's.
    """
    saved, own = _counts(state), _counts(optimizer.state_dict())
    if sum(saved) == sum(own):
        return state
    before, after = _layout(attachment, saved), _layout(attachment, own)
    if before is None or after is None:
        raise ValueError(
            f"The saved optimizer has {sum(saved)} parameters, this one {sum(own)}, and the mask "
            f"{len(attachment.mask.names)} tensors; resume with the arm and the mask that were saved."
        )
    sizes = {name: attachment.mask.indices(name).numel() for name in attachment.mask.names}
    by_name = _by_name(state["state"], before, sizes)
    joined = {index: _join([by_name[name] for name in names]) for index, names in enumerate(after)}
    groups, first = [], 0
    for number, count in enumerate(own):
        options = state["param_groups"][min(number, len(saved) - 1)]
        groups.append({**options, "params": list(range(first, first + count))})
        first += count
    return {
        **state,
        "state": {index: found for index, found in joined.items() if found},
        "param_groups": groups,
    }


def _counts(state: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


def _layout(attachment: Attachment, counts: list[int]) -> Layout | None:
    """What parameters in groups of these sizes hold, if they can be an attachment's."""
    names = list(attachment.mask.names)
    vectors = [name for name in names if len(attachment.mask.shape(name)) < 2]
    matrices = [name for name in names if len(attachment.mask.shape(name)) >= 2]
    kinds = [kind for kind in (matrices, vectors) if kind]
    if sum(counts) == len(names):
        in_one_group = max(counts) == len(names)
        return [[name] for name in (names if in_one_group else matrices + vectors)]
    return kinds if sum(counts) == len(kinds) else None


def _by_name(
    state: dict[int, dict[str, Any]], layout: Layout, sizes: dict[str, int]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for index, names in enumerate(layout):
        parts = [sizes[name] for name in names]
        cut = {key: _cut(value, parts) for key, value in state.get(index, {}).items()}
        for place, name in enumerate(names):
            found[name] = {key: pieces[place] for key, pieces in cut.items()}
    return found


def _cut(value: Any, sizes: list[int]) -> list[Any]:
    """A moment (n,) in pieces of these sizes; a step count for each."""
    if isinstance(value, Tensor) and value.dim():
        if value.numel() != sum(sizes):
            raise ValueError(
                f"The saved optimizer holds {value.numel():,} values where the mask has {sum(sizes):,}; resume with "
                "the mask that was saved."
            )
        return list(value.split(sizes))
    return [value] * len(sizes)


def _join(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One state of many: moments joined; steps, which are the same, kept."""
    return {
        key: torch.cat([state[key] for state in states])
        if isinstance(value, Tensor) and value.dim()
        else (value.clone() if isinstance(value, Tensor) else value)
        for key, value in states[0].items()
    }
