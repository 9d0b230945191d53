"""What a plan is made of: a model, on the meta device, and how it is to be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multiticket import bases
from multiticket.arms.facts import ARMS
from multiticket.errors import first_sentence
from multiticket.mask import Mask
from multiticket.models import reading
from multiticket.plan.activations import FULL_ROWS, PADDED_ROWS
from multiticket.plan.quantised import BYTES


@dataclass(frozen=True)
class Workload:
    """What to plan. ValueError for an unknown name or a number out of bounds."""

    model: str
    """A shipped base, a folder with a ``config.json``, or a name on the hub."""
    density: float = 0.01
    """The ticket's."""
    tokens: int = 1024
    """Prompt and completion together."""
    batch: int = 4
    """Sequences in one forward and backward pass."""
    dtype: str = "bfloat16"
    """Of the weights."""
    arms: tuple[str, ...] = tuple(ARMS)
    lora_rank: int | None = None
    """None: the rank whose number of trained values is nearest the ticket's."""
    gradient_checkpointing: bool = False
    padded: bool = False
    """Whether rows are padded; transformers then gives attention a mask, and more is saved."""
    completions: int | None = None
    """Sequences generated at once; None: ``batch``."""
    device: str = "cuda"
    """Says by which path a ticket is attached, and so what its layers keep."""
    quantised: str | None = None
    """A format of ``BYTES``, in every arm but full, which cannot train quantised weights."""
    make_mask: Callable[[Any], Mask] | None = None
    """Gives the ticket's mask of the model on the meta device; None: random positions of every tensor."""
    masters: bool = True
    """Count the full arm's fp32 master weights beside a bf16 or fp16 model, as the paper has them."""
    prompts: tuple[int, int, int] | None = None
    """How many different ones a batch has, of how many tokens, how many of which all begin with; None: every sequence
    has its own."""
    generated: tuple[int, int, int, int] | None = None
    """Of completions: how many different prompts they go on from, the tokens of a prompt and of a completion, and the
    most tokens that are held at once; None: all are held, each with a prompt of its own, of ``tokens`` in all."""

    def __post_init__(self) -> None:
        _refuse_unknown("device", self.device, ("cuda", "cpu"))
        _refuse_unknown("dtype", self.dtype, ("bfloat16", "float16", "float32"))
        if self.quantised is not None:
            _refuse_unknown("format", self.quantised, tuple(BYTES))
        if not self.arms or not set(self.arms) <= set(ARMS) or len(set(self.arms)) < len(self.arms):
            raise ValueError(
                f"The arms to plan are some of {', '.join(ARMS)}, each once, not {','.join(self.arms)!r}."
            )
        if not 0 < self.density <= 1:
            raise ValueError(
                f"The density must be above 0 and at most 1, such as 0.01, but is {self.density:g}."
            )
        for name in ("tokens", "batch", "lora_rank", "completions"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, but is {count}.")

    @property
    def at_once(self) -> int:
        """Sequences generated at once."""
        return self.completions or self.batch

    def build(self) -> Any:
        """The model on the meta device, ready to train. ValueError where there is none, or it is no language model."""
        place = Path(bases.resolve(self.model)).expanduser()
        if self.model.startswith((".", "/", "~")) and not (place / "config.json").is_file():
            raise ValueError(
                f"There is no config.json in {self.model}: give a shipped base, a model's folder, or a hub name."
            )
        with reading("read the configuration of", self.model):
            config = AutoConfig.from_pretrained(place.as_posix())
        try:
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype))
        except ValueError as error:
            raise ValueError(
                f"{config.model_type} is not a causal language model that can be planned: {first_sentence(error)}."
            ) from None
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(PADDED_ROWS if self.padded else FULL_ROWS)
        return model.train()


def _refuse_unknown(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(
            f"There is no {kind} {name!r} to plan for; give {', '.join(known[:-1])} or {known[-1]}."
        )
