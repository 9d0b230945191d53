"""Decoding by `generate` of transformers, for every architecture that it knows: the slow twin of `shared_prompts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from multiticket.generate.shared_prompts import Choose, Look


def generate(
    model: Any,
    contexts: Sequence[Sequence[int]],
    room: Sequence[int],
    stops: Sequence[int],
    pad: int,
    choose: Choose,
    look: Look | None = None,
    enough: Callable[[int, int], bool] = lambda running, tokens: False,
) -> tuple[list[list[int]], list[bool]]:
    """What `shared_prompts.decode` gives, by the same arguments, of any model."""
    width = max(map(len, contexts))
    inputs = torch.full((len(contexts), width), pad)
    attention = torch.zeros_like(inputs)
    for place, ids in enumerate(contexts):
        inputs[place, width - len(ids) :] = torch.tensor(list(ids))
        attention[place, width - len(ids) :] = 1
    watch = _Watch(stops, torch.tensor(list(room), device=model.device), width, look, enough)
    output = model.generate(
        input_ids=inputs.to(model.device),
        attention_mask=attention.to(model.device),
        generation_config=_plain_generation(max(room), list(stops), pad),
        logits_processor=LogitsProcessorList([_Chosen(choose, width)]),
        stopping_criteria=StoppingCriteriaList([watch]),
        synced_gpus=False,  # each process by itself
    )
    said = [
        _through(row[:most], stops)
        for row, most in zip(output[:, width : width + watch.length].tolist(), room, strict=True)
    ]
    return said, watch.done.tolist()


def _through(row: list[int], stops: Sequence[int]) -> list[int]:
    """A completion's ids through its first stop token; what follows is padding."""
    return next((row[: place + 1] for place, token in enumerate(row) if token in stops), row)


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


class _Chosen(LogitsProcessor):
    """Leaves the chosen token of each row as the only possible one."""

    def __init__(self, choose: Choose, width: int) -> None:
        self.choose = choose
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits to zeros and minus infinities."""
        rows = torch.arange(len(scores), device=scores.device)
        chosen = self.choose(scores, rows, input_ids.shape[1] - self.width)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


class _Watch(StoppingCriteria):
    """Ends the rows that are done, and the batch once that is enough."""

    def __init__(
        self,
        stops: Sequence[int],
        room: Tensor,
        width: int,
        look: Look | None,
        enough: Callable[[int, int], bool],
    ) -> None:
        self.stops = torch.tensor(list(stops), device=room.device)
        self.room = room
        self.width = width
        self.look = look
        self.enough = enough
        self.done = torch.zeros_like(room, dtype=torch.bool)
        self.length = int(room.max())
        """Tokens generated when the batch was broken off; transformers may append padding after that."""
        self._over = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if not self._over:
            new = input_ids.shape[1] - self.width
            self.done |= torch.isin(input_ids[:, -1], self.stops) | (new >= self.room)
            done = int(self.done.sum())
            if self.look is not None:
                self.look(done, new)
            if self.enough(len(self.done) - done, new):
                self._over, self.length = True, min(new, self.length)
        return torch.ones_like(self.done) if self._over else self.done.clone()
