"""What a run would do and need, worked out without loading weights or writing anything."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from multiticket import arms, bases, tasks
from multiticket.arms.masks import mask_by_shapes
from multiticket.config import RunConfig, build
from multiticket.errors import why_not_loaded
from multiticket.generate.prompts import prompt_texts
from multiticket.plan.fitting import in_words, machine_memory, what_fits
from multiticket.plan.memory import ArmPlan, plan
from multiticket.train.recipe import grpo_config

ITEMSIZE = {"float32": 4, "bfloat16": 2}


def preview(config: RunConfig, output: Path) -> dict[str, Any]:
    """Settings, trained positions, memory in bytes, and the work of a run.

    Reads the model's configuration, its tokenizer and the task's problems.

    Raises:
        ValueError: for what the run itself would refuse, as far as that shows without the weights.
    """
    tokenizer = _tokenizer(config.model)
    task = tasks.asked(tasks.get(config.task), tokenizer, config.asking)
    completion = config.max_completion_tokens or task.max_completion_tokens
    grpo_config(config, output / "checkpoints", completion)
    prompts = {split: _prompt_tokens(task, split, tokenizer) for split in ("train", config.eval.split)}
    longest = max(prompts["train"])
    steps = work(config, len(prompts["train"]), longest, completion)
    asked: dict[str, Any] = {
        "density": config.density,
        "tokens": longest + completion,
        "batch": config.micro_batch,
        "dtype": config.dtype,
        "arms": (config.arm,),
        "gradient_checkpointing": _checkpoints_activations(config),
        "padded": True,
        "completions": _completions_at_once(config, max(map(max, prompts.values())) + completion),
        "make_mask": lambda model: mask_by_shapes(model, config),
        "lora_rank": config.lora_rank,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "masters": False,
        "prompts": (min(config.micro_batch, config.rollouts // config.group), longest),
    }
    planned = plan(config.model, **asked)
    arm = planned.arms[0]
    settings = config.model_dump(mode="json")
    return {
        "output": str(output),
        "settings": settings,
        "changed": changed(config),
        "parameters": planned.parameters,
        "trained": arm.trained,
        "trained_bytes": arm.trained * ITEMSIZE[arms.get(config.arm).kept_dtype(config)],
        "memory": {
            **asdict(arm),
            "state": arm.state,
            "training": arm.training,
            "generation": arm.generation,
            "peak": arm.peak,
        },
        "work": steps,
        "evaluation": evaluation_work(config, prompts[config.eval.split], completion),
        "notes": [*notes(config), *_what_fits(config, asked, arm)],
    }


def changed(config: RunConfig) -> list[str]:
    """The settings that are not as they are without being given, those of the evaluation as ``eval.NAME``."""
    given, default = config.model_dump(), build({}).model_dump()
    inner = [f"eval.{name}" for name, value in given["eval"].items() if value != default["eval"][name]]
    return [name for name in given if name != "eval" and given[name] != default[name]] + inner


def work(config: RunConfig, problems: int, longest_prompt: int, completion: int) -> dict[str, Any]:
    """What the training does: counts, and tokens at most (every prompt the longest, every completion cut off).

    Raises:
        ValueError: the task has fewer problems than a step takes.
    """
    a_step = config.rollouts // config.group
    if problems < a_step:
        raise ValueError(
            f"A step takes {a_step} problems (rollouts / group) and task {config.task} has {problems} to train on: "
            "lower rollouts or raise group."
        )
    rollouts = config.steps * config.rollouts
    return {
        "optimiser_steps": config.steps,
        "passes_a_step": config.rollouts // config.micro_batch,
        "problems": problems,
        "problems_a_step": a_step,
        "epochs": config.steps * a_step / problems,
        "rollouts": rollouts,
        "longest_prompt": longest_prompt,
        "longest_completion": completion,
        "generated_tokens_at_most": rollouts * completion,
        "trained_tokens_at_most": rollouts * (longest_prompt + completion),
        "checkpoints": -(-config.steps // config.save_every) if config.save_every else 0,
    }


def evaluation_work(config: RunConfig, prompt_tokens: list[int], completion: int) -> dict[str, Any]:
    """The two measurements, before and after: completions and tokens at most, of both together."""
    problems = min(config.eval.problems or len(prompt_tokens), len(prompt_tokens))
    completions = 2 * problems * (config.eval.samples + 1)
    return {
        "split": config.eval.split,
        "problems": problems,
        "completions": completions,
        "generated_tokens_at_most": completions * completion,
    }


def notes(config: RunConfig) -> list[str]:
    """What the memory figures do not know of."""
    said = []
    if config.grpo.get("use_vllm"):
        said.append("vLLM generates: its weights and cache are not counted, and the cache shown is not used.")
    if "optim" in config.grpo:
        said.append(f"The moments are those of AdamW; the optimiser is {config.grpo['optim']}.")
    return said + arms.get(config.arm).notes(config)


def _completions_at_once(config: RunConfig, tokens: int) -> int:
    """Of ``tokens`` with their prompts: all rollouts of a step, or what an evaluation takes together."""
    problems = config.eval.problems or config.eval.batch_size
    asked = min(problems * (config.eval.samples + 1), config.eval.batch_size)
    return max(config.rollouts, min(asked, max(1, config.eval.batch_tokens // tokens)))


def _what_fits(config: RunConfig, asked: dict[str, Any], arm: ArmPlan) -> list[str]:
    """Where this machine has not enough memory: the settings nearest to the run's with which it has."""
    memory = machine_memory()
    if memory is None or arm.fits(memory):
        return []
    ways = in_words(what_fits(config.model, memory, asked), "micro_batch", "gradient_checkpointing")
    said = f"This needs {arm.peak / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB"
    return [f"{said}. It fits with {ways}."]


def _checkpoints_activations(config: RunConfig) -> bool:
    return any(bool(config.grpo.get(f"{what}_checkpointing")) for what in ("gradient", "activation"))


def _prompt_tokens(task: Any, split: str, tokenizer: Any) -> list[int]:
    """The length of every prompt of a split, in tokens."""
    texts = prompt_texts(list(task.problems(split)["prompt"]), tokenizer, task)
    if not texts:
        raise ValueError(f"The {split} split of task {task.name} has no problems.")
    return [len(ids) for ids in tokenizer(text=texts)["input_ids"]]


def _tokenizer(model: str) -> Any:
    place = bases.resolve(model)
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Cannot read the tokenizer of {model!r}, which is needed to count prompt tokens: give a shipped base "
            f"({', '.join(bases.names())}), a checkpoint folder, or a hub name; {why_not_loaded(error)}."
        ) from None
