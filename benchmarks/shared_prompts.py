"""Rollouts and passes in which prompts are computed once, against ones in which they are not: CPU seconds, interleaved.

    python benchmarks/shared_prompts.py                            # random weights in the shape of Qwen2.5-Coder-0.5B
    python benchmarks/shared_prompts.py --model FOLDER --rounds 3
    python benchmarks/shared_prompts.py --passes                   # no rollouts

8 problems of `--prompt` tokens, which begin with the same `--beginning` tokens, and 8 completions of each of at most 16
tokens. ``long`` ends none of them earlier; ``short`` ends each after 4 tokens in the mean, by taking a quarter of the
vocabulary as end tokens. ``plain`` is `generate` of transformers, or a pass over whole sequences, with torch's default
products; ``shared`` is what a run does. Of a pass there is also ``copied``, in which prompts are computed once and each
completion has its own copy of their keys and values; ``..._kept`` is what autograd keeps for the way back, in bytes,
without the weights. Where whole sequences are too long a pass over them is left out. The process has one thread, so
that others on the machine disturb the least.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from multiticket import Mask, attach
from multiticket.generate.by_generate import generate
from multiticket.generate.products import fast_products
from multiticket.generate.shared_prompts import decode, drawn
from multiticket.plan.activations import Saved
from multiticket.train import shared_groups
from multiticket.train.shared_groups import after_prompts, prompts_of

GROUPS, GROUP, ANSWER = 8, 8, 16
MOST_PLAIN = 8192
"""Tokens of a pass over whole sequences."""


def qwen() -> Any:
    shape = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def contexts(vocabulary: int, prompt: int, beginning: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(100, vocabulary, (count,), generator=generator).tolist()

    begin = tokens(beginning)
    asked = [begin + tokens(prompt - beginning) for _ in range(GROUPS)]
    return [ask for ask in asked for _ in range(GROUP)]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def rollouts(model: Any, asked: list[list[int]], uniforms: Any, stops: list[int]) -> dict[str, Any]:
    def by(way: Any) -> Callable[[], Any]:
        return lambda: way(model, asked, [ANSWER] * len(asked), stops, 0, drawn(uniforms, 1.0))

    with torch.no_grad():
        plain, (theirs, _) = seconds(by(generate))
        with fast_products():
            shared, (ours, _) = seconds(by(decode))
    return {
        "plain_s": plain,
        "shared_s": shared,
        "ratio": plain / shared,
        "mean_length": sum(map(len, ours)) / len(ours),
        "equal": sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours),
    }


def one_pass(model: Any, asked: list[list[int]]) -> dict[str, Any]:
    """Forward and backward over whole sequences, with the loss of the completions' tokens."""
    generator = torch.Generator().manual_seed(2)
    said = torch.randint(100, model.config.vocab_size, (len(asked), ANSWER), generator=generator)
    ids = torch.cat([torch.tensor(asked), said], dim=1)
    attention = torch.ones_like(ids)

    def loss(of: Any, ids: Any, attention: Any) -> Any:
        logits = of(input_ids=ids, attention_mask=attention, logits_to_keep=ANSWER + 1).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())

    def plain() -> None:
        loss(model, ids, attention).backward()

    def after() -> Any:
        found = prompts_of(ids, attention, ANSWER)
        assert found is not None
        before = len(asked[0]) - 1
        continued = after_prompts(model, ids[:, :before], attention[:, :before], *found)
        return loss(continued, ids[:, before:], attention[:, before:])

    def shared() -> None:
        after().backward()

    def timed(work: Callable[[], None], products: Any) -> float:
        model.zero_grad()
        with products():
            return seconds(work)[0]

    def kept() -> int:
        saved = Saved.beside(model)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor), fast_products():
            after()
        return saved.bytes

    copying = patch.object(shared_groups, "attends_by_parts", lambda model: False)
    took = {}
    if ids.numel() <= MOST_PLAIN:
        took["plain_s"] = timed(plain, nullcontext)
        took["plain_onednn_s"] = timed(plain, fast_products)
    with copying:
        took["copied_s"] = timed(shared, fast_products)
    took["shared_s"] = timed(shared, fast_products)
    if "plain_s" in took:
        took["ratio"] = took["plain_s"] / took["shared_s"]
    took["ratio_to_copied"] = took["copied_s"] / took["shared_s"]
    with copying:
        took["copied_kept"] = kept()
    return {**took, "shared_kept": kept()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="a checkpoint's folder or a hub name; default: random weights")
    parser.add_argument("--prompt", type=int, default=45, help="tokens of a prompt")
    parser.add_argument("--beginning", type=int, default=25, help="tokens with which all prompts begin")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--passes", action="store_true", help="training passes alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32) if given.model else qwen()
    model.generation_config.eos_token_id = None
    vocabulary = model.config.vocab_size
    asked = contexts(vocabulary, given.prompt, given.beginning)
    uniforms = torch.rand(len(asked), ANSWER, dtype=torch.float64)
    attached = False
    for _ in range(given.rounds):
        for name, stops in () if given.passes else (("long", [0]), ("short", list(range(0, vocabulary, 4)))):
            print(
                json.dumps({"what": f"rollouts, {name}", **rollouts(model, asked, uniforms, stops)}),
                flush=True,
            )
        if not attached:
            attach(model, Mask.random(model, density=0.01))
            attached = True
        print(json.dumps({"what": "a pass of a 1 % ticket", **one_pass(model, asked)}), flush=True)


if __name__ == "__main__":
    main()
