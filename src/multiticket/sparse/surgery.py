"""Changes to a model that an attachment would not survive: noticed before the next step, and refused in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from multiticket.sparse.watch import Entries

DETACH_FIRST = "detach before changing a model, and attach a new mask."
MOST_KEPT = 1 << 16
"""Entries of a weight of which a whole copy is kept once somebody may write outside the mask."""


def stays_a_parameter(name: str) -> str:
    """What is said to whoever would make something else of a masked weight."""
    return (
        f"{name} has an attachment, and cannot become something else than a parameter of its own (tying, weight norm, "
        f"pruning, a parametrisation); {DETACH_FIRST}"
    )


def were_tied(one: str, other: str) -> str:
    """What is said of two masked weights that have become one."""
    return f"{one} and {other} were tied while they had an attachment; {DETACH_FIRST}"


class Structure:
    """Which modules lie where in a model, for those with masked weights.

    Args:
        model: while it is attached; wrapping its modules (PEFT, checkpointing) is fine, replacing them is not.
        places: by tensor name, the modules that read it.
    """

    def __init__(self, model: nn.Module, places: dict[str, Sequence[nn.Module]]) -> None:
        self._model = model
        present = set(model.modules())
        self._places = {
            name: [module for module in readers if module in present] for name, readers in places.items()
        }
        self._edges = Entries(_edges(model))

    def refuse_if_changed(self) -> None:
        """Raise RuntimeError where a module with a masked weight is no longer part of the model."""
        if self._edges.are_the_same():
            return
        present = set(self._model.modules())
        for name, readers in self._places.items():
            if not present.issuperset(readers):
                raise RuntimeError(
                    f"A module that held {name} was taken out of the model or replaced (resized, perhaps): what its "
                    f"values learn would go nowhere; {DETACH_FIRST}"
                )
        self._edges = Entries(_edges(self._model))


def _edges(model: nn.Module) -> list[tuple[dict[str, nn.Module | None], str]]:
    return [
        (module._modules, key)
        for module in model.modules()
        for key, child in module._modules.items()
        if child is not None
    ]
