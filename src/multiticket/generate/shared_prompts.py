"""Decoding in which what prompts have in common is computed once.

Completions of one problem begin with the same prompt, and prompts of one task with the same words. `generate` of
transformers computes all of it again for every row. Here the beginning that all prompts share is computed for one
row, the rest of each prompt once, and its cache is handed to all rows that go on from it. Rows that are done leave the
batch. The slow reference is `generate` itself (`completion.by_generate`), which has the same arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from multiticket.generate.own_attention import (
    OtherAttention,
    attends_by_parts,
    own_attention,
    takes_whole_rows,
)
from multiticket.generate.shared_cache import SharedCache

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(rows, vocabulary) logits, which rows those are, and how many tokens came before -> (rows,) tokens."""
Look = Callable[[int, int], None]
"""Told after each token how many rows are done, and how many tokens each row has that is not."""

NEEDED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
"""What a model's forward must take for this."""


def shares_prompts(model: Any) -> bool:
    """Whether a model's cache is one of keys and values of all tokens, by rows, that other rows can be given."""
    model = inner(model)
    config = model.config
    return (
        set(inspect.signature(type(model).forward).parameters) >= NEEDED
        and not getattr(config, "is_encoder_decoder", False)
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and keeps_all_tokens(config)
    )


def keeps_all_tokens(config: Any) -> bool:
    """Whether each layer's cache is one of keys and values of all tokens."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def inner(model: Any) -> Any:
    """The model of transformers in which PEFT has put its adapters, or the model itself."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


@torch.no_grad()
def decode(
    model: Any,
    contexts: Sequence[Sequence[int]],
    room: Sequence[int],
    stops: Sequence[int],
    pad: int,
    choose: Choose,
    look: Look | None = None,
    enough: Callable[[int, int], bool] = lambda running, tokens: False,
) -> tuple[list[list[int]], list[bool]]:
    """Tokens that follow each context, its stop token included, and whether that is all of them.

    Args:
        model: one that `shares_prompts`.
        contexts: token ids of each row, none of them empty. Equal ones are computed once.
        room: at most so many tokens for each row.
        stops: ids that end a row.
        choose: the next token of some rows, such as `likeliest`, or `drawn` with its first argument given.
        enough: asked after each token, of how many rows still run and how many tokens they have: whether to leave them.
    """
    model, device = inner(model), model.device
    distinct = {tuple(ids): None for ids in contexts}
    place = {ids: i for i, ids in enumerate(distinct)}
    which = torch.tensor([place[tuple(ids)] for ids in contexts], device=device)
    logits, attention, cache, common = _prefill(model, list(distinct), pad)
    if attends_by_parts(model) and len(contexts) > 1:
        shared = SharedCache(cache, common, attention, which)
        try:
            with own_attention(model):
                return _go_on(
                    model, logits[which], attention[which], shared, room, stops, pad, choose, look, enough
                )
        except OtherAttention:  # of the first token: nothing has been said
            takes_whole_rows(model)
            logits, attention, cache, _ = _prefill(model, list(distinct), pad)
    cache.batch_select_indices(which)
    return _go_on(model, logits[which], attention[which], cache, room, stops, pad, choose, look, enough)


def _go_on(
    model: Any,
    logits: Tensor,
    attention: Tensor,
    cache: DynamicCache,
    room: Sequence[int],
    stops: Sequence[int],
    pad: int,
    choose: Choose,
    look: Look | None,
    enough: Callable[[int, int], bool],
) -> tuple[list[list[int]], list[bool]]:
    """What `decode` returns, from the logits (rows, vocabulary) after each context and its cache."""
    device, in_all = logits.device, len(logits)
    most, stop = max(room), torch.tensor(list(stops), device=device)
    left = torch.tensor(list(room), device=device)
    said = torch.full((in_all, most), pad, device=device)
    length = torch.zeros(in_all, dtype=torch.long, device=device)
    ended = torch.zeros(in_all, dtype=torch.bool, device=device)
    rows = torch.arange(in_all, device=device)
    for step in range(most):
        tokens = choose(logits, rows, step)
        live = ~ended[rows]
        said[rows[live], step] = tokens[live]
        length[rows[live]] = step + 1
        ended[rows] |= torch.isin(tokens, stop) | (left[rows] <= step + 1)
        running = ~ended[rows]
        count = int(running.sum())
        if look is not None:
            look(in_all - count, step + 1)
        if not count or enough(count, step + 1):
            break
        if (len(rows) - count) * 8 >= len(rows):
            keep = running.nonzero().squeeze(1)
            rows, tokens, attention = rows[keep], tokens[keep], attention[keep]
            cache.batch_select_indices(keep)
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        logits = _forward(model, tokens[:, None], attention, cache)
    texts = [ids[:n] for ids, n in zip(said.tolist(), length.tolist(), strict=True)]
    return texts, ended.tolist()


def _prefill(
    model: Any, contexts: list[tuple[int, ...]], pad: int
) -> tuple[Tensor, Tensor, DynamicCache, int]:
    """Logits (contexts, vocabulary) after each, attention mask (contexts, width), the cache of that width, and how
    many tokens all begin with.

    What all begin with comes first, once; each context's own tokens follow, padded on the left.
    """
    device, cache = model.device, DynamicCache(config=model.config)
    common = common_beginning(contexts) if len(contexts) > 1 else 0
    if common:
        ids = torch.tensor([contexts[0][:common]], device=device)
        _forward(model, ids, torch.ones_like(ids), cache)
        cache.batch_select_indices(torch.zeros(len(contexts), dtype=torch.long, device=device))
    width = max(map(len, contexts)) - common
    ids = torch.full((len(contexts), width), pad)
    attention = torch.ones(len(contexts), common + width, dtype=torch.long)
    for row, context in enumerate(contexts):
        gap = width - len(context) + common
        ids[row, gap:] = torch.tensor(context[common:])
        attention[row, common : common + gap] = 0
    attention = attention.to(device)
    return _forward(model, ids.to(device), attention, cache), attention, cache, common


def common_beginning(contexts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all begin with; one less than the shortest has, at most."""
    first, last = min(contexts), max(contexts)  # in the order of words: what these share, all share
    most = min(map(len, contexts)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def places(attention: Tensor) -> Tensor:
    """Where each token (rows, tokens) stands among its row's that are no padding; 0 for padding before them."""
    return (attention.cumsum(1) - 1).clamp(min=0)


def _forward(model: Any, ids: Tensor, attention: Tensor, cache: DynamicCache) -> Tensor:
    """Logits (rows, vocabulary) after the last of `ids` (rows, tokens), which are the attention mask's last columns."""
    output = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=places(attention)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def likeliest(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """(rows,) the likeliest token of each."""
    return logits.argmax(-1)


def drawn(uniforms: Tensor, temperature: float) -> Choose:
    """Draws each row's token by inverse transform from its own `uniforms` (all rows, tokens), float64 in [0, 1)."""
    return partial(_draw, uniforms, temperature)


def _draw(uniforms: Tensor, temperature: float, logits: Tensor, rows: Tensor, step: int) -> Tensor:
    scaled = logits if temperature == 1 else logits / temperature
    return inverse_transform(scaled, uniforms[rows, step])


TOGETHER = 1 << 23
"""Logits that are drawn from together: 32 MiB in fp32."""
BLOCK = 512
"""Tokens whose probabilities are summed before sums are added up in float64."""


def inverse_transform(logits: Tensor, uniform: Tensor) -> Tensor:
    """(rows,) the token at which the probabilities' running sum passes `uniform` (rows,) of all of it.

    The running sum is over blocks of the vocabulary, then within the one block that counts, both in float64: for a
    large vocabulary a tenth of the work of a running sum over all. Rows go through it a few at a time, since it makes
    as many numbers as there are logits.
    """
    some = max(1, TOGETHER // logits.shape[1])
    if len(logits) > some:
        pieces = zip(logits.split(some), uniform.split(some), strict=True)
        return torch.cat([inverse_transform(*piece) for piece in pieces])
    rows, size = logits.shape
    weights = (
        logits.float() - logits.amax(-1, keepdim=True)
    ).exp_()  # probabilities but for one factor a row
    whole = size - size % BLOCK
    sums = [weights[:, :whole].reshape(rows, -1, BLOCK).sum(-1), weights[:, whole:].sum(-1, keepdim=True)]
    ends = torch.cat(sums, dim=1).double().cumsum(-1)
    target = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=logits.device)
    inside = weights.gather(1, places.clamp(max=size - 1)).masked_fill(places >= size, 0.0)
    running = inside.cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(running, target - before, right=True)
    # rounding may leave the target at the block's very end: the last token in it that has any probability
    last = BLOCK - 1 - (inside.flip(-1) > 0).int().argmax(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last)).squeeze(1).clamp(max=size - 1)
