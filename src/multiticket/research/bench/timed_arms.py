"""What is compared: each arm, what it trains, and whether two arms are comparable.

LoRA and SHiRA adapt the linear layers of every block; the rank is the one whose number of trained values is nearest
the anchor's, the ticket of 1 % over all tensors. A ticket on the same modules ("linear") takes the density that gives
as many values as they train, so that one arm matches in modules and in number, whatever the shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multiticket.arms.facts import ARMS
from multiticket.config import RunConfig, build
from multiticket.research.bench.shapes import Shape

ADAPTERS = tuple(name for name, facts in ARMS.items() if facts.is_adapter)
FLOOR = "floor"
"""Forward and input gradient, and nothing trained."""
KINDS = (FLOOR, *(name for name in ARMS if name not in ADAPTERS), "columns", "linear", *ADAPTERS)
"""What is measured where nothing else is asked for; a mask is attached by the path that ``attach`` chooses."""
BY_PATH = {"hooks": "hooks", "hooks-columns": "hooks", "direct": "direct"}
"""Kinds that name the path of their attachment: tickets, and columns."""
TICKETS = ("ticket", "hooks", "direct")
"""Kinds of which there is an arm for each density."""
DENSITIES = (0.1, 0.01, 0.001, 0.0001)
ANCHOR = 0.01
"""Density of the ticket that sets how many values the rivals train, and of the columns mask."""
TOLERANCE = 0.02
"""How far, relatively, the numbers of values may be apart for times to be compared."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    kind: str
    """One of ``KINDS`` or ``BY_PATH``."""
    density: float | None = None
    """Of a ticket, in each tensor of its scope."""
    rank: int | None = None
    """Of an adapter."""

    def settings(self, shape: Shape) -> RunConfig:
        """As a run would name it. Not for the floor, which is no arm."""
        if self.density is None:
            alpha = {} if self.rank is None else {"lora_alpha": self.rank}
            return build({"arm": self.kind, "lora_rank": self.rank, **alpha})
        scope = ",".join(f"*.{name}.weight" for name in shape.linear) if self.kind == "linear" else "all"
        return build({"arm": "ticket", "method": self.method, "density": self.density, "scope": scope})

    @property
    def path(self) -> str:
        """By which the mask is attached: ``hooks``, ``direct``, or ``auto``, what the machine wants."""
        return BY_PATH.get(self.kind, "auto")

    @property
    def method(self) -> str:
        """Of the mask's rule."""
        return "columns" if self.kind.endswith("columns") else "random"


def choose_arms(shape: Shape, kinds: Sequence[str], densities: Sequence[float]) -> list[Arm]:
    """The arms of these kinds, of tickets one for each density, in the order of ``kinds``.

    Raises:
        ValueError: an unknown or repeated kind, a density out of bounds, no arm, or rivals that no ticket matches.
    """
    known = [*KINDS, *BY_PATH]
    if not {*kinds} <= {*known} or not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"The arms are some of {', '.join(known)}, each once, not {','.join(kinds)!r}.")
    wrong = [density for density in densities if not 0 < density <= 1]
    if wrong or not densities or len(set(densities)) < len(densities):
        given = ",".join(f"{density:g}" for density in densities)
        raise ValueError(
            f"The densities must differ, each above 0 and at most 1, such as 0.01, not {given!r}."
        )
    rank = max(1, round(shape.parameters * ANCHOR / shape.values_per_rank))
    matched = rank * shape.values_per_rank / shape.linear_entries
    if matched > 1 and {"linear", *ADAPTERS} & set(kinds):
        raise ValueError("This model has fewer weights than an adapter of rank 1 trains; use a larger one.")
    one_of = {
        FLOOR: Arm(FLOOR, FLOOR),
        **{name: Arm(facts.title(), name) for name, facts in ARMS.items() if facts.trains_everything},
        **{name: Arm(ARMS[name].title(rank=rank), name, rank=rank) for name in ADAPTERS},
        "columns": Arm(f"columns {_percent(ANCHOR)}", "columns", density=ANCHOR),
        "hooks-columns": Arm(f"columns {_percent(ANCHOR)}, hooks", "hooks-columns", density=ANCHOR),
        "linear": Arm("ticket, linear layers", "linear", density=matched),
    }
    arms = []
    for kind in kinds:
        if kind in TICKETS:
            path = f", {kind}" if kind in BY_PATH else ""
            arms += [Arm(f"ticket {_percent(density)}{path}", kind, density=density) for density in densities]
        else:
            arms.append(one_of[kind])
    refuse_unmatched(arms, {arm.name: expected_values(shape, arm) for arm in arms})
    return arms


def expected_values(shape: Shape, arm: Arm) -> int:
    """How many values ``arm`` trains."""
    if arm.kind == FLOOR:
        return 0
    if arm.rank is not None:
        return arm.rank * shape.values_per_rank
    if arm.density is None:
        return shape.parameters
    sizes = [rows * columns for rows, columns in shape.linear.values()] * shape.layers
    return sum(int(size * arm.density) for size in (sizes if arm.kind == "linear" else shape.tensor_sizes))


def comparable(count: int, other: int) -> bool:
    """Whether two numbers of trained values are the same within ``TOLERANCE``."""
    return abs(count - other) <= TOLERANCE * max(count, other)


def refuse_unmatched(arms: Sequence[Arm], trained: Mapping[str, int]) -> None:
    """Raises ValueError where LoRA or SHiRA trains another number of values than every ticket beside it."""
    tickets = [arm for arm in arms if arm.kind in (*TICKETS, "linear")]
    for arm in arms:
        if arm.kind in ADAPTERS and tickets:
            matches = [ticket for ticket in tickets if comparable(trained[arm.name], trained[ticket.name])]
            if not matches:
                raise ValueError(
                    f"{arm.name} trains {trained[arm.name]:,} values, and no ticket that is measured trains as many "
                    f"within {100 * TOLERANCE:g} %; add the arm 'linear', which does."
                )


def _percent(density: float) -> str:
    return f"{100 * density:g} %"
