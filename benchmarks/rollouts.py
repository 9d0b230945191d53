"""Rollouts of one group size by three engines on one machine: transformers' generate, what a run does, and vLLM.

    python benchmarks/rollouts.py --model FOLDER --dtype bfloat16 --json docs/results/rollouts.json

Runs where vLLM is installed (``make vllm-environment``, then ``.venv-vllm/bin/python``). 8 questions of the arithmetic
task in words, 8 samples of each at temperature 1, every sample of exactly ``--tokens`` tokens, so that all engines do
equal work. One process; in each round every engine runs once, in a new random order, after one round that is not
counted. vLLM caches prefixes within a round, and its cache is emptied between rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch

from multiticket import __version__, tasks
from multiticket.generate.by_generate import generate
from multiticket.generate.products import fast_products
from multiticket.generate.prompts import prompt_texts
from multiticket.generate.shared_prompts import decode, drawn
from multiticket.models import load_model

QUESTIONS, SAMPLES = 8, 8


def engines(arguments: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """By name, what makes all rollouts once and gives the number of tokens made."""
    import vllm

    model, tokenizer = load_model(arguments.model, arguments.dtype)
    model.eval()
    task = tasks.get("arithmetic")
    questions = prompt_texts(task.problems("train")[:QUESTIONS]["prompt"], tokenizer, task)
    contexts = [ids for ids in tokenizer(text=questions)["input_ids"] for _ in range(SAMPLES)]
    count, tokens = len(contexts), arguments.tokens
    uniforms = torch.rand(count, tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    given = (contexts, [tokens] * count, [], pad, drawn(uniforms, 1.0))

    @torch.no_grad()
    def plain() -> int:
        return sum(map(len, generate(model, *given)[0]))

    @torch.no_grad()
    def shared() -> int:
        with fast_products():
            return sum(map(len, decode(model, *given)[0]))

    llm = vllm.LLM(
        arguments.model,
        dtype=arguments.dtype,
        max_model_len=max(map(len, contexts)) + tokens + 1,
        max_num_seqs=count,
        enable_prefix_caching=True,
        seed=0,
    )
    sampling = vllm.SamplingParams(temperature=1.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)

    def by_vllm() -> int:
        llm.reset_prefix_cache()
        asked = [{"prompt_token_ids": ids} for ids in contexts]
        done = llm.generate(asked, sampling, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in done)

    return {"transformers": plain, "multiticket": shared, "vllm": by_vllm}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder, a shipped base or a name on the hub")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ways = engines(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name in random.sample([*ways], len(ways)):
            began = time.perf_counter()
            made = ways[name]()
            took = time.perf_counter() - began
            assert made == QUESTIONS * SAMPLES * arguments.tokens, (name, made)
            if turn:
                seconds[name].append(took)
            print(f"round {turn} of {arguments.rounds}, {name}: {took:.1f} s", flush=True)
    rollouts = QUESTIONS * SAMPLES
    result: dict[str, Any] = {
        "model": Path(arguments.model).name,
        "dtype": arguments.dtype,
        "rollouts": rollouts,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"multiticket": __version__, "torch": torch.__version__},
        "engines": {
            name: {
                "seconds": statistics.median(took),
                "rollouts_per_second": rollouts / statistics.median(took),
                "over_transformers": statistics.median(
                    mine / plain for mine, plain in zip(took, seconds["transformers"], strict=True)
                ),
                "all": took,
            }
            for name, took in seconds.items()
        },
    }
    print("| engine | seconds | rollouts a second | time over transformers' |\n| --- | --- | --- | --- |")
    for name, fields in result["engines"].items():
        numbers = [fields["seconds"], fields["rollouts_per_second"], fields["over_transformers"]]
        print(f"| {name} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
