"""Completions of many prompts by one model: in batches of like length, greedy or sampled.

Equal prompts are computed once and what is done leaves the batch (`shared_prompts`), where the model's cache allows
it; `generate` of transformers does the decoding for every other architecture that it knows (`by_generate`). Random
numbers come from each completion's own stream, so that what it says does not depend on what it was batched with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from multiticket.generate.by_generate import generate
from multiticket.generate.head import contiguous_head
from multiticket.generate.products import fast_products
from multiticket.generate.shared_prompts import decode, inverse_transform, shares_prompts

LEAST_TOKENS, LEAST_ROWS = 32, 16
"""A batch is broken off after so many tokens at the earliest, if it has so many rows."""

Tell = Callable[[int, float], None]
"""Told how many completions are over, and how many there would be had those under way been counted by their tokens."""


@dataclass
class _Row:
    """One completion under way."""

    index: int
    stream: int
    temperature: float | None
    prompt: list[int]
    new: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.new


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float | Sequence[float | None] | None = None,
    batch_size: int = 512,
    batch_tokens: int = 2**17,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    tell: Tell | None = None,
) -> list[str]:
    """One completion a prompt, as text without special tokens; greedy unless a temperature is given.

    Prompts are tokenised, padded on the left and ended exactly as TRL does in training. torch's random state is
    neither used nor changed.

    Args:
        temperature: of all, or of each prompt's completion.
        batch_size, batch_tokens: at most so many completions, and tokens (prompt and completion at their longest),
            are generated together; a single completion may take more. They change what is held in memory, and
            completions only where rounding does.
        seed, streams: seed and number of each completion's random stream; None: its place in `prompts`.
        tell: told now and then how far it is.
    """
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    tokenised = tokenizer(text=list(prompts))["input_ids"] if prompts else []
    numbers = streams if streams is not None else range(len(prompts))
    each = temperature if isinstance(temperature, Sequence) else [temperature] * len(prompts)
    rows = [_Row(i, numbers[i], each[i], list(ids)) for i, ids in enumerate(tokenised)]
    running = list(rows)
    was_training = model.training
    model.eval()
    try:
        with fast_products():
            while running:
                over, left = len(rows) - len(running), []
                batches = list(_batches(running, max_new_tokens, batch_size, batch_tokens))
                for batch in batches:
                    look = None if tell is None else partial(_tell_sum, tell, over)
                    still = _advance(model, batch, max_new_tokens, seed, stops, pad, look, len(batches) == 1)
                    over += len(batch) - len(still)
                    left += still
                    if tell is not None:
                        tell(over, over)
                running = left
    finally:
        model.train(was_training)
    return tokenizer.batch_decode([row.new for row in rows], skip_special_tokens=True)


def _tell_sum(tell: Tell, before: int, more: int, worth: float) -> None:
    tell(before + more, before + worth)


def _batches(rows: list[_Row], tokens: int, batch_size: int, batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows of like length, so that little of a batch is padding, and equal prompts together."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.ids)):
        longest = len(row.ids) + tokens - len(row.new)
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _advance(
    model: Any,
    batch: list[_Row],
    max_new_tokens: int,
    seed: int,
    stops: list[int],
    pad: int,
    look: Tell | None,
    alone: bool,
) -> list[_Row]:
    """Generate for a batch until few of its rows still run, and give those back to be batched with others.

    Args:
        look: told how far the batch is.
        alone: there are no other rows.
    """
    room = [max_new_tokens - len(row.new) for row in batch]
    sampled = [row.temperature is not None for row in batch]
    uniforms = np.stack([_uniforms(seed, row, max(room)) for row in batch])
    choose = _Choose(
        torch.tensor(uniforms, device=model.device),
        torch.tensor([row.temperature or 1.0 for row in batch], device=model.device),
        torch.tensor(sampled, device=model.device) if any(sampled) else None,
    )

    def enough(running: int, tokens: int) -> bool:
        return len(batch) >= LEAST_ROWS and tokens >= LEAST_TOKENS and 4 * running <= len(batch)

    def told(done: int, tokens: int) -> None:
        assert look is not None
        look(done, done + (len(batch) - done) * tokens / max(room))

    shares = shares_prompts(model)
    with contiguous_head(model):
        new, ended = (decode if shares else generate)(
            model,
            [row.ids for row in batch],
            room,
            stops,
            pad,
            choose,
            None if look is None else told,
            _never if shares and alone else enough,
        )
    for row, tokens in zip(batch, new, strict=True):
        row.new += _until(tokens, stops)
    return [row for row, over in zip(batch, ended, strict=True) if not over]


def _never(running: int, tokens: int) -> bool:
    return False


@dataclass(frozen=True)
class _Choose:
    """The next tokens of some rows: the likeliest, or one drawn by the row's own numbers."""

    uniforms: Tensor
    """(all rows, tokens) float64 in [0, 1)."""
    temperatures: Tensor
    """(all rows,)."""
    sampled: Tensor | None
    """(all rows,) whether to draw; None for not one."""

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        likeliest = logits.argmax(-1)
        if self.sampled is None:
            return likeliest
        temperatures = self.temperatures[rows, None]
        scaled = logits if bool((temperatures == 1).all()) else logits.float() / temperatures
        drawn = inverse_transform(scaled, self.uniforms[rows, step])
        return torch.where(self.sampled[rows], drawn, likeliest)


def _uniforms(seed: int, row: _Row, count: int) -> Any:
    """(count,) float64 in [0, 1): the next numbers of a row's own stream."""
    if row.temperature is None:
        return np.zeros(count)
    stream = np.random.Generator(np.random.Philox(key=[seed, row.stream]))
    return stream.random(len(row.new) + count)[len(row.new) :]


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's and those that the model declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = [declared] if isinstance(declared, int) else list(declared or [])
    own = tokenizer.eos_token_id
    if isinstance(own, int) and own not in stops:
        stops.insert(0, own)
    if not stops:
        raise ValueError(
            "The tokenizer and the model have no end-of-sequence token, so completions would never end."
        )
    return stops


def _until(row: list[int], stops: list[int]) -> list[int]:
    """A completion's ids up to its first stop token; what follows is padding."""
    for place, token in enumerate(row):
        if token in stops:
            return row[:place]
    return row
