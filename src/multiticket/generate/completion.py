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
from multiticket.generate.own_attention import attends_by_parts
from multiticket.generate.products import fast_products
from multiticket.generate.room import most_tokens
from multiticket.generate.shared_prompts import decode, inner, inverse_transform, shares_prompts

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
    most: int
    """Tokens that it may have."""
    new: list[int] = field(default_factory=list)
    """Without what ended it."""
    end: list[int] = field(default_factory=list)
    """The stop token; nothing where it was cut off."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.new


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float | Sequence[float | None] | None = None,
    **options: Any,
) -> list[str]:
    """One completion a prompt, as text without special tokens; greedy unless a temperature is given.

    Prompts are tokenised, padded on the left and ended exactly as TRL does in training.

    Args:
        temperature, options: as `complete_ids` takes them.
    """
    tokenised: Any = tokenizer(text=list(prompts))["input_ids"] if prompts else []
    contexts = [list(ids) for ids in tokenised]
    said = complete_ids(model, tokenizer, contexts, max_new_tokens, temperature, **options)
    stops = stop_tokens(model, tokenizer)
    return tokenizer.batch_decode([until(ids, stops) for ids in said], skip_special_tokens=True)


@torch.no_grad()
def complete_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[list[int]],
    max_new_tokens: int | Sequence[int],
    temperature: float | Sequence[float | None] | None = None,
    batch_size: int = 512,
    batch_tokens: int = 2**17,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    tell: Tell | None = None,
) -> list[list[int]]:
    """Token ids of one completion a context, the stop token included; greedy unless a temperature is given.

    torch's random state is neither used nor changed.

    Args:
        max_new_tokens: of all, or of each context's completion.
        temperature: of all, or of each context's completion.
        batch_size, batch_tokens: at most so many completions, and tokens whose keys and values are held (prompts and
            completions at their longest), are generated together, and no more than an eighth of the memory takes
            (`room.most_tokens`); a single completion may take more. They change what is held in memory, and completions
            only where rounding does.
        seed, streams: seed and number of each completion's random stream; None: its place in `contexts`.
        tell: told now and then how far it is.
    """
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    numbers = streams if streams is not None else range(len(contexts))
    each = temperature if isinstance(temperature, Sequence) else [temperature] * len(contexts)
    most = max_new_tokens if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * len(contexts)
    rows = [_Row(i, numbers[i], each[i], list(ids), most[i]) for i, ids in enumerate(contexts)]
    running = list(rows)
    apart = not (shares_prompts(model) and attends_by_parts(inner(model)))
    most_held = most_tokens(inner(model).config, model.dtype, batch_tokens)
    was_training = model.training
    model.eval()
    try:
        with fast_products():
            while running:
                over, left = len(rows) - len(running), []
                batches = list(_batches(running, batch_size, most_held, apart))
                for batch in batches:
                    look = None if tell is None else partial(_tell_sum, tell, over)
                    still = _advance(model, batch, seed, stops, pad, look, len(batches) == 1)
                    over += len(batch) - len(still)
                    left += still
                    if tell is not None:
                        tell(over, over)
                running = left
    finally:
        model.train(was_training)
    return [row.new + row.end for row in rows]


def _tell_sum(tell: Tell, before: int, more: int, worth: float) -> None:
    tell(before + more, before + worth)


def _batches(rows: list[_Row], batch_size: int, batch_tokens: int, apart: bool) -> Iterator[list[_Row]]:
    """Rows of like length, so that little of a batch is padding, and equal prompts together.

    Args:
        apart: whether each row holds its prompt's keys and values for itself.
    """
    batch: list[_Row] = []
    different = 0
    for row in sorted(rows, key=lambda row: (len(row.ids), row.ids)):
        new = not batch or batch[-1].ids != row.ids
        count, prompts = len(batch) + 1, different + new
        held = (count if apart else prompts) * len(row.ids) + count * (row.most - len(row.new))
        if batch and (len(batch) == batch_size or held > batch_tokens):
            yield batch
            batch, different, new = [], 0, True
        batch.append(row)
        different += new
    if batch:
        yield batch


def _advance(
    model: Any,
    batch: list[_Row],
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
    room = [row.most - len(row.new) for row in batch]
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
        said = until(tokens, stops)
        row.end = tokens[len(said) : len(said) + 1]
        row.new += said
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


def until(row: list[int], stops: Sequence[int]) -> list[int]:
    """A completion's ids up to its first stop token; what follows is padding."""
    for place, token in enumerate(row):
        if token in stops:
            return row[:place]
    return row
