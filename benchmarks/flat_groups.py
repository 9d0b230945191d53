"""A training pass with a graph only for rollouts that have an advantage, against one for all: CPU seconds.

    python benchmarks/flat_groups.py      # random weights in the shape of SmolLM2-135M, three quarters flat
    python benchmarks/flat_groups.py --flat 0.5 --rounds 3

64 rollouts of 45 + 30 tokens, in groups of 8 with a prompt each, computed once as in a run. The process has one thread,
so that others on the machine disturb the least.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from multiticket import Mask, attach
from multiticket.generate.products import fast_products
from multiticket.train.flat_groups import in_two_passes, with_gradient
from multiticket.train.shared_groups import after_prompts, prompts_of

GROUPS, GROUP, PROMPT, ANSWER = 8, 8, 45, 30


def smollm2() -> Any:
    shape = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def seconds(model: Any, ids: Tensor, advantages: Tensor, apart: bool) -> float:
    """One forward and backward pass of the policy gradient."""

    def scores(rows: Tensor) -> tuple[Tensor]:
        some = ids[rows]
        found = prompts_of(some, torch.ones_like(some), ANSWER)
        assert found is not None
        before = PROMPT - 1
        continued = after_prompts(model, some[:, :before], torch.ones_like(some[:, :before]), *found)
        rest, seen = some[:, before:], torch.ones_like(some[:, before:])
        logits = continued(input_ids=rest, attention_mask=seen).logits[:, :-1]
        return (-torch.nn.functional.cross_entropy(logits.transpose(1, 2), rest[:, 1:], reduction="none"),)

    model.zero_grad()
    began = time.process_time()
    with fast_products():
        learning = with_gradient(advantages) if apart else None
        (found,) = scores(torch.arange(len(ids))) if learning is None else in_two_passes(scores, learning)
        (-(advantages[:, None] * found).mean()).backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--flat", type=float, default=0.75, help="share of groups without signal")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = smollm2()
    ids = torch.cat(
        [
            torch.randint(100, 49152, (GROUPS, PROMPT)).repeat_interleave(GROUP, dim=0),
            torch.randint(100, 49152, (GROUPS * GROUP, ANSWER)),
        ],
        dim=1,
    )
    advantages = torch.tensor([0.5, -0.5] * (GROUPS * GROUP // 2))
    advantages[: round(given.flat * GROUPS) * GROUP] = 0
    for arm in ("full", "ticket"):
        if arm == "ticket":
            attach(model, Mask.random(model, density=0.01))
        for _ in range(given.rounds):
            together, apart = (seconds(model, ids, advantages, apart) for apart in (False, True))
            told = {"what": arm, "together_s": together, "apart_s": apart, "ratio": together / apart}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
