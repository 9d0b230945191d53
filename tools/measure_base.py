"""How well a base answers: greedily, with one sample, and with sixteen."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiticket.tasks import Task

SAMPLES = 16
PROMPTS_AT_ONCE = 64


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], tokens: int, samples: int
) -> list[list[str]]:
    """`samples` completions of every prompt at temperature 1, or the greedy one where `samples` is 0."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if samples:
        sampling = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "num_return_sequences": samples,
        }
    generated = model.generate(  # type: ignore[operator]
        **batch,
        **sampling,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    texts = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    count = max(samples, 1)
    return [texts[i : i + count] for i in range(0, len(texts), count)]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: str,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, float | int]:
    """Shares of exact answers to the first `limit` problems of a split (all of them by default).

    `greedy`; `pass@1`, the mean over 16 samples at temperature 1; `pass@16`, the share of problems that one of the 16
    answers; `n`, the number of problems. `seed` seeds the samples, without touching the caller's random state.
    """
    problems = task.problems(split)
    prompts, answers = list(problems["prompt"])[:limit], list(problems["answer"])[:limit]
    right = {"greedy": 0.0, "pass@1": 0.0, "pass@16": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            chunk = slice(start, start + PROMPTS_AT_ONCE)
            greedy = complete(model, tokenizer, prompts[chunk], task.max_completion_tokens, 0)
            sampled = complete(model, tokenizer, prompts[chunk], task.max_completion_tokens, SAMPLES)
            for answer, (best,), texts in zip(answers[chunk], greedy, sampled, strict=True):
                marks = [task.correct(text, answer) for text in texts]
                right["greedy"] += task.correct(best, answer)
                right["pass@1"] += sum(marks) / SAMPLES
                right["pass@16"] += any(marks)
    return {**{name: round(count / len(prompts), 4) for name, count in right.items()}, "n": len(prompts)}
