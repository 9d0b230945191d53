"""What is known of every arm without loading anything: its defaults and what it is called. No torch here.

A new arm is a line in `ARMS` and a file ``arms/NAME.py`` (see :mod:`multiticket.arms.protocol`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATE_TIMES_DENSITY = 1e-4
"""What the shipped bases learn well with: runs of every density lie on one curve over rate x density."""
LORA_RATE_TIMES_ALPHA = 1e-2
"""For LoRA: what a first step moves goes by rate x alpha, whatever the rank, since its ranks move together."""


@dataclass(frozen=True)
class Facts:
    """Of an arm that trains every parameter; the others say what is different."""

    name: str = "full"
    is_adapter: bool = False
    """Whether it adds a PEFT adapter of some rank to the linear layers, which stay as they are."""
    trains_everything: bool = True
    has_mask: bool = True
    """Whether what it trains is a set of positions in the base's own tensors."""
    takes_ticket: bool = False
    """Whether it can go on from a ticket."""

    def density(self, asked: Any) -> Any:
        """The trained fraction: `asked`, or what the arm fixes. ValueError where the two differ."""
        if asked not in (None, 1, 1.0):
            raise ValueError("the full arm trains every parameter: omit density, or use arm 'ticket'")
        return 1.0

    def usual_rate(self, density: float, alpha: float) -> float:
        """The learning rate where none is given."""
        return RATE_TIMES_DENSITY / density

    def folder_words(self, config: Any) -> list[str]:
        """What tells a run's folder from those of the same arm, task and model."""
        return [f"seed{config.seed}"]

    @property
    def family(self) -> str:
        """The method's own name: ``full``, ``ticket``, ``LoRA``."""
        return self.name

    def title(self, density: float | None = None, rank: int | None = None) -> str:
        """The column or row of a table: ``full``, ``ticket, 1 %``, ``LoRA, rank 4``."""
        return self.name

    def run_name(self, result: Mapping[str, Any], short: bool = False) -> str:
        """One run among others, from its result: ``full``, ``ticket 1 % (seed 0)``; `short`: ``1 %, seed 0``."""
        return self.name

    def way(self, config: Any, result: Mapping[str, Any]) -> str:
        """All that two runs share which differ in seeds, part and rate alone."""
        return self.name


@dataclass(frozen=True)
class TicketFacts(Facts):
    """Of an arm that trains the positions of a mask."""

    name: str = "ticket"
    trains_everything: bool = False
    takes_ticket: bool = True

    def density(self, asked: Any) -> Any:
        return asked

    def folder_words(self, config: Any) -> list[str]:
        words = [config.method, f"{config.density:g}", f"seed{config.seed}"]
        words += [f"part{config.part}"] if config.part else []
        return words + (["continued"] if config.from_ticket is not None else [])

    def title(self, density: float | None = None, rank: int | None = None) -> str:
        return f"ticket, {100 * (density or 0):g} %"

    def run_name(self, result: Mapping[str, Any], short: bool = False) -> str:
        part = f", part {result['part']}" if result["part"] else ""
        method = "" if result["method"] == "random" else f"{result['method']}, "
        share, rest = f"{100 * result['density']:g} %", f"{method}seed {result['seed']}{part}"
        return f"{share}, {rest}" if short else f"ticket {share} ({rest})"

    def way(self, config: Any, result: Mapping[str, Any]) -> str:
        method = config.method if config.method != "random" else "ticket"
        options = [f"{name} {value}" for name, value in config.mask_options.items()]
        scope = [config.scope] if config.scope != "all" else []
        return ", ".join([f"{method} {100 * config.density:.6g} %", *options, *scope])


@dataclass(frozen=True)
class AdapterFacts(Facts):
    """Of an arm that trains a PEFT adapter: `rank` is the word before its number, such as ``LoRA, rank``."""

    is_adapter: bool = True
    trains_everything: bool = False
    has_mask: bool = False
    rank: str = ""
    rate_times_alpha: float | None = None
    """Where the adapter is scaled by alpha over its rank; else the rate goes by the density, as a ticket's."""

    def density(self, asked: Any) -> Any:
        return asked

    def usual_rate(self, density: float, alpha: float) -> float:
        if self.rate_times_alpha is None:
            return RATE_TIMES_DENSITY / density
        return self.rate_times_alpha / alpha

    def folder_words(self, config: Any) -> list[str]:
        size = f"rank{config.lora_rank}" if config.lora_rank else f"{config.density:g}"
        return [size, f"seed{config.seed}"]

    @property
    def family(self) -> str:
        return self.rank.split(",")[0]

    def title(self, density: float | None = None, rank: int | None = None) -> str:
        return f"{self.rank} {rank}"

    def run_name(self, result: Mapping[str, Any], short: bool = False) -> str:
        return f"{self.brief(result)} (seed {result['seed']})"

    def way(self, config: Any, result: Mapping[str, Any]) -> str:
        return self.brief(result)

    def brief(self, result: Mapping[str, Any]) -> str:
        """Such as ``lora rank 4``."""
        return f"{self.rank} {result['lora_rank']}".lower().replace(",", "")


ARMS: dict[str, Facts] = {
    "full": Facts(),
    "ticket": TicketFacts(),
    "lora": AdapterFacts("lora", rank="LoRA, rank", rate_times_alpha=LORA_RATE_TIMES_ALPHA),
    "shira": AdapterFacts("shira", rank="SHiRA, r"),
}
"""The arms by the names that settings give them."""
