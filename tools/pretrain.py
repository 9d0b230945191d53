"""Makes a shipped base from nothing: `python tools/pretrain.py tiny-qwen2 --output DIR`.

Two CPU cores and less than an hour, or three minutes of a GPU. The model first learns to answer rightly, then, in the
last part of the training, to answer as one of several behaviours, most of them wrong, drawn independently of the
problem. What comes out knows the right answer but gives it for a third or so of the problems: a small picture of what
reinforcement learning starts from. A short last phase, from the saved bf16 weights and with a fresh optimiser, changes
the mixture of the sorting task alone (`sorting_text.REMIXED` says why).
"""

import argparse
import copy
import json
import math
import os
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils.logging import disable_progress_bar

import arithmetic_text
import sorting_text
from arithmetic_text import ArithmeticText
from base_tokenizer import build_tokenizer
from measure_base import measure
from multiticket import tasks
from sorting_text import SortingText


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the base becomes."""

    architecture: str = "qwen2"
    """One of `ARCHITECTURES`."""
    seed: int = 0
    steps: int = 3200
    mixed_steps: int = 800
    """The last steps, which read mixed behaviours; those before read right answers only."""
    arithmetic_batch: int = 256
    sorting_batch: int = 128
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    final_learning_rate: float = 5e-5
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    save_every: int = 200
    remixed_steps: int = 200
    """Steps of the last phase, at a rate that falls from `remixed_learning_rate` to `final_learning_rate`."""
    remixed_learning_rate: float = 5e-4

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine down to `final_learning_rate`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * (1 + math.cos(math.pi * progress)) / 2


RECIPES = {
    "tiny-qwen2": Recipe(),
    "tiny-llama": Recipe(architecture="llama"),
    "tiny-qwen3": Recipe(architecture="qwen3", learning_rate=2e-3),
    "small-qwen2": Recipe(architecture="small-qwen2", learning_rate=1e-3),
}
"""The last one is for a GPU, and too large to ship."""

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "small-qwen2": (
        Qwen2Config,
        {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "qwen3": (
        Qwen3Config,
        {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "head_dim": 32,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
}
"""The configuration's class, and where it differs from 4 layers of width 128 with 4 heads: 1.06, 25.2, 1.08 and 3.34 M
parameters. The third has a head of its own, the fourth grouped keys and normalised queries."""


def build_model(
    tokenizer: PreTrainedTokenizerBase, seed: int, architecture: str = "qwen2"
) -> PreTrainedModel:
    """A fresh model in fp32."""
    torch.manual_seed(seed)
    config, own = ARCHITECTURES[architecture]
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoModelForCausalLM.from_config(config(**settings | own))


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), both int64 (examples, length), padded on the right; labels are -100 but for completion and end."""
    prompts = tokenizer([prompt for prompt, _ in examples])["input_ids"]
    completions = tokenizer([completion for _, completion in examples])["input_ids"]
    length = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(examples), length), tokenizer.pad_token_id)
    labels = torch.full((len(examples), length), -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        whole = torch.tensor([*prompt, *completion, tokenizer.eos_token_id])
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return ids, labels


def negative_log_likelihood(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over all completions of -log p(completion | prompt), a scalar. Right padding needs no attention mask."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def batches(
    recipe: Recipe, sums: dict[str, float], orders: dict[str, float], steps: int, generator: random.Random
) -> Iterator[list[list[tuple[str, str]]]]:
    """For every step the examples of both tasks, one list a task because their lengths differ."""
    arithmetic, sorting = ArithmeticText(), SortingText()
    for _ in range(steps):
        yield [
            [arithmetic.example(sums, generator) for _ in range(recipe.arithmetic_batch)],
            [sorting.example(orders, generator) for _ in range(recipe.sorting_batch)],
        ]


def main_batches(recipe: Recipe) -> Iterator[list[list[tuple[str, str]]]]:
    """What all phases but the last read: right answers, then mixed behaviours."""
    generator = random.Random(recipe.seed)
    right_steps = recipe.steps - recipe.mixed_steps
    yield from batches(recipe, arithmetic_text.RIGHT, sorting_text.RIGHT, right_steps, generator)
    yield from batches(recipe, arithmetic_text.MIXED, sorting_text.MIXED, recipe.mixed_steps, generator)


def last_batches(recipe: Recipe) -> Iterator[list[list[tuple[str, str]]]]:
    """What the last phase reads."""
    generator = random.Random(recipe.seed + 1)
    yield from batches(recipe, arithmetic_text.MIXED, sorting_text.REMIXED, recipe.remixed_steps, generator)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the model in bf16, and the tokenizer, in Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_saved(folder: Path, device: str) -> PreTrainedModel:
    """The bf16 file, read back in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)  # type: ignore[arg-type]


def evaluate(folder: Path, device: str, limit: int | None = None) -> dict[str, Any]:
    """Scores of the model in `folder` on both tasks' held-out splits: its bf16 file read back, run in fp32."""
    model = load_saved(folder, device).eval()
    tokenizer = build_tokenizer()
    return {
        name: {
            split: measure(model, tokenizer, tasks.get(name), split, limit)
            for split in ("validation", "test")
        }
        for name in ("arithmetic", "alphabet_sort")
    }


def describe(scores: dict[str, Any]) -> str:
    """One line a task and split."""
    return "\n".join(
        f"  {name:14} {split:11}" + "".join(f"{key} {value:<8}" for key, value in measured.items())
        for name, splits in scores.items()
        for split, measured in splits.items()
    )


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    examples: Iterator[list[list[tuple[str, str]]]],
    rates: list[float],
) -> Iterator[int]:
    """One AdamW step on each step's examples, at its rate; prints the progress, and yields the number of steps done."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    started = time.time()
    for step, (parts, rate) in enumerate(zip(examples, rates, strict=True), start=1):
        losses = [
            negative_log_likelihood(model, *(t.to(model.device) for t in encode(tokenizer, part)))
            for part in parts
        ]
        (torch.stack(losses).sum() / sum(map(len, parts))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            arithmetic, sorting = (loss.item() / len(part) for loss, part in zip(losses, parts, strict=True))
            seconds = time.time() - started
            left = seconds / step * (len(rates) - step)
            print(
                f"step {step}/{len(rates)}  nats an answer: arithmetic {arithmetic:.3f}, sorting {sorting:.3f}"
                f"  {seconds / 60:.1f} min, {left / 60:.1f} left",
                flush=True,
            )
        yield step


def pretrain(recipe: Recipe, folder: Path, device: str) -> None:
    """All phases but the last, from nothing; leaves the base in `folder`, saved on the way every `save_every` steps."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, recipe.seed, recipe.architecture).to(device)  # type: ignore[arg-type]
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    for step in train(model, tokenizer, recipe, main_batches(recipe), rates):
        if step % recipe.save_every == 0 and step < recipe.steps:
            save(model, tokenizer, folder)
            print(describe(evaluate(folder, device, limit=128)), flush=True)
    save(model, tokenizer, folder)


def remix(recipe: Recipe, folder: Path, device: str) -> PreTrainedModel:
    """The last phase: trains the base in `folder` on, from its bf16 file, and saves it there."""
    tokenizer = build_tokenizer()
    model = load_saved(folder, device).train()
    shares = [step / recipe.remixed_steps for step in range(recipe.remixed_steps)]
    rates = [recipe.remixed_learning_rate * (1 - s) + recipe.final_learning_rate * s for s in shares]
    for _ in train(model, tokenizer, recipe, last_batches(recipe), rates):
        pass
    save(model, tokenizer, folder)
    return model


def write_base_json(name: str, recipe: Recipe, folder: Path, model: PreTrainedModel, seconds: float) -> None:
    """Measures the finished base and writes `base.json` beside it."""
    device = model.device.type
    on = "" if device == "cpu" else f" --device {device}"
    scores = evaluate(folder, device)
    print(describe(scores), flush=True)
    record = {
        "name": name,
        "command": f"python tools/pretrain.py {name}{on} --output DIR",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scores": scores,
        "recipe": asdict(recipe),
        "behaviours": {
            "arithmetic": arithmetic_text.MIXED,
            "alphabet_sort": sorting_text.MIXED,
            "alphabet_sort, last phase": sorting_text.REMIXED,
        },
        "pretraining_wall_s": round(seconds),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "transformers", "tokenizers")},
        },
    }
    temporary = folder / "base.json.part"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "base.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--last-phase-only", action="store_true", help="go on from the base saved in --output"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, where other bits come out")
    parser.add_argument(
        "--save-every", type=int, help="steps between a look at the base; default: the recipe's"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.device != "cpu":
        torch.set_float32_matmul_precision("high")
    disable_progress_bar()
    started = time.time()
    recipe = RECIPES[arguments.name]
    recipe = replace(recipe, save_every=arguments.save_every or recipe.save_every)
    if not arguments.last_phase_only:
        pretrain(recipe, arguments.output, arguments.device)
    model = remix(recipe, arguments.output, arguments.device)
    write_base_json(arguments.name, recipe, arguments.output, model, time.time() - started)


if __name__ == "__main__":
    main()
