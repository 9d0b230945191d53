"""Completions of many prompts by one model: in batches of like length, greedy or sampled.

``generate`` of transformers does the decoding, for every architecture that it knows. Three things are ours: how much
goes into a batch, that a batch is broken off when few of its completions still run, and where random numbers come
from: each completion has its own stream, so that what it says does not depend on what it was batched with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

LEAST_TOKENS, LEAST_ROWS, LOOK_EVERY = 32, 16, 16
"""A batch is broken off after so many tokens at the earliest, if it has so many rows; how often one looks."""


@dataclass
class _Row:
    """One completion under way."""

    index: int
    stream: int
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
    temperature: float | None = None,
    batch_size: int = 512,
    batch_tokens: int = 2**17,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    tell: Callable[[int], None] | None = None,
) -> list[str]:
    """One completion a prompt, as text without special tokens; greedy unless a temperature is given.

    Prompts are tokenised, padded on the left and ended exactly as TRL does in training. torch's random state is
    neither used nor changed.

    Args:
        batch_size, batch_tokens: at most so many completions, and tokens (prompt and completion at their longest),
            are generated together; a single completion may take more. They change what is held in memory, and
            completions only where rounding does.
        seed, streams: seed and number of each completion's random stream; None: its place in `prompts`.
        tell: told now and then how many of the completions are over.
    """
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    tokenised = tokenizer(text=list(prompts))["input_ids"] if prompts else []
    numbers = streams if streams is not None else range(len(prompts))
    rows = [_Row(i, numbers[i], list(ids)) for i, ids in enumerate(tokenised)]
    running = list(rows)
    was_training = model.training
    model.eval()
    try:
        while running:
            over, left = len(rows) - len(running), []
            for batch in _batches(running, max_new_tokens, batch_size, batch_tokens):
                look = None if tell is None else partial(_tell_sum, tell, over)
                still = _advance(model, batch, max_new_tokens, temperature, seed, stops, pad, look)
                over += len(batch) - len(still)
                left += still
                if tell is not None:
                    tell(over)
            running = left
    finally:
        model.train(was_training)
    return tokenizer.batch_decode([row.new for row in rows], skip_special_tokens=True)


def _tell_sum(tell: Callable[[int], None], before: int, more: int) -> None:
    tell(before + more)


def _batches(rows: list[_Row], tokens: int, batch_size: int, batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows of like length, so that little of a batch is padding."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
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
    temperature: float | None,
    seed: int,
    stops: list[int],
    pad: int,
    look: Callable[[int], None] | None,
) -> list[_Row]:
    """Generate for a batch until few of its rows still run, and give those back; `look` is told how many are done."""
    width = max(len(row.ids) for row in batch)
    inputs = torch.full((len(batch), width), pad)
    attention = torch.zeros_like(inputs)
    for place, row in enumerate(batch):
        inputs[place, width - len(row.ids) :] = torch.tensor(row.ids)
        attention[place, width - len(row.ids) :] = 1
    room = [max_new_tokens - len(row.new) for row in batch]
    few = _FewAreLeft(stops, torch.tensor(room, device=model.device), width, look)
    sampling = []
    if temperature is not None:
        uniforms = torch.tensor(
            np.stack([_uniforms(seed, row, max(room)) for row in batch]), device=model.device
        )
        sampling = [_OwnStreams(uniforms, temperature, width)]
    output = model.generate(
        input_ids=inputs.to(model.device),
        attention_mask=attention.to(model.device),
        generation_config=_plain_generation(max(room), stops, pad),
        logits_processor=LogitsProcessorList(sampling),
        stopping_criteria=StoppingCriteriaList([few]),
    )
    left = []
    for row, said, more in zip(batch, output[:, width : width + few.length].tolist(), room, strict=True):
        new = _until(said[:more], stops)
        row.new += new
        if len(new) == few.length < more:
            left.append(row)
    return left


def _plain_generation(tokens: int, stops: list[int], pad: int) -> GenerationConfig:
    """The likeliest token each time. What a model declares (penalties, beams) would fill in what is not said here."""
    return GenerationConfig(
        max_new_tokens=tokens,
        pad_token_id=pad,
        eos_token_id=stops,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        disable_compile=True,
    )


def _uniforms(seed: int, row: _Row, count: int) -> Any:
    """(count,) float64 in [0, 1): the next numbers of a row's own stream."""
    stream = np.random.Generator(np.random.Philox(key=[seed, row.stream]))
    return stream.random(len(row.new) + count)[len(row.new) :]


class _OwnStreams(LogitsProcessor):
    """Draws each row's token by inverse transform from its own numbers, and leaves it as the only possible one."""

    def __init__(self, uniforms: Tensor, temperature: float, width: int) -> None:
        self.uniforms = uniforms  # (rows, tokens)
        self.temperature = temperature
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits to zeros and minus infinities."""
        cumulative = (scores / self.temperature).softmax(-1, dtype=torch.float64).cumsum(-1)
        uniform = self.uniforms[:, input_ids.shape[1] - self.width, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class _FewAreLeft(StoppingCriteria):
    """Ends the rows that are done, and the batch once three quarters of it are."""

    def __init__(
        self, stops: list[int], room: Tensor, width: int, look: Callable[[int], None] | None
    ) -> None:
        self.look = look
        self.stops = torch.tensor(stops, device=room.device)
        self.room = room
        self.width = width
        self.done = torch.zeros_like(room, dtype=torch.bool)
        self.length = int(room.max())
        """Tokens generated when the batch was broken off; transformers may append padding after that."""
        self._over = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = input_ids.shape[1] - self.width
        self.done |= torch.isin(input_ids[:, -1], self.stops) | (new >= self.room)
        rows = len(self.done)
        if self.look is not None and new % LOOK_EVERY == 0:
            self.look(int(self.done.sum()))
        look = rows >= LEAST_ROWS and new >= LEAST_TOKENS and new % LOOK_EVERY == 0
        if look and not self._over and int(self.done.sum()) * 4 >= 3 * rows:
            self._over, self.length = True, min(new, self.length)
        return torch.ones_like(self.done) if self._over else self.done.clone()


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's and those that the model declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = [declared] if isinstance(declared, int) else list(declared or [])
    own = tokenizer.eos_token_id
    if isinstance(own, int) and own not in stops:
        stops.insert(0, own)
    if not stops:
        raise ValueError(
            "The tokenizer and the model name no end-of-sequence token, so no completion could end."
        )
    return stops


def _until(row: list[int], stops: list[int]) -> list[int]:
    """A completion's ids up to its first stop token; what follows is padding."""
    for place, token in enumerate(row):
        if token in stops:
            return row[:place]
    return row
