"""What a run would do and need, worked out without loading weights or writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from multiticket import arms, bases, tasks
from multiticket.arms.masks import mask_by_shapes
from multiticket.config import RunConfig, build
from multiticket.generate.prompts import prompt_texts
from multiticket.generate.room import machine_memory
from multiticket.generate.shared_prompts import common_beginning
from multiticket.models import reading
from multiticket.plan.fitting import in_words, what_fits
from multiticket.plan.memory import ArmPlan, plan
from multiticket.plan.workload import Workload
from multiticket.runs.folder import RunFolder
from multiticket.train.setup import most_tokens, refuse_early


def preview(config: RunConfig, output: Path) -> dict[str, Any]:
    """Settings, trained positions, memory in bytes, and the work of a run.

    Reads the model's configuration, its tokenizer and the task's problems.

    Raises:
        ValueError: for what the run itself would refuse, as far as that shows without the weights.
    """
    with reading("read the tokenizer of", config.model):
        tokenizer = AutoTokenizer.from_pretrained(bases.resolve(config.model))
    task = tasks.asked(tasks.get(config.task), tokenizer, config.asking)
    refuse_early(config, RunFolder(output), task)
    completion = most_tokens(config, task)
    told = {split: _prompts(task, split, tokenizer) for split in ("train", config.eval.split)}
    prompts = {split: [len(ids) for ids in each] for split, each in told.items()}
    longest, common = max(prompts["train"]), common_beginning(told["train"])
    at_once, different = _completions_at_once(config)
    workload = Workload(
        model=config.model,
        density=config.density,
        tokens=longest + completion,
        batch=config.micro_batch,
        dtype=config.dtype,
        arms=(config.arm,),
        lora_rank=config.lora_rank,
        gradient_checkpointing=any(
            config.grpo.get(f"{what}_checkpointing") for what in ("gradient", "activation")
        ),
        padded=True,
        completions=at_once,
        generated=(different, max(map(max, prompts.values())), completion, config.eval.batch_tokens),
        device="cuda" if torch.cuda.is_available() else "cpu",
        make_mask=lambda model: mask_by_shapes(model, config),
        masters=False,
        prompts=(min(config.micro_batch, config.rollouts // config.group), longest, common),
    )
    planned = plan(workload)
    (arm,) = planned.arms
    kept = getattr(torch, arms.get(config.arm).kept_dtype(config))
    return {
        "output": str(output),
        "settings": config.model_dump(mode="json"),
        "changed": changed(config),
        "parameters": planned.parameters,
        "trained": arm.trained,
        "trained_bytes": arm.trained * kept.itemsize,
        "memory": arm.to_json(),
        "work": work(config, len(prompts["train"]), longest, completion),
        "evaluation": evaluation_work(config, len(prompts[config.eval.split]), completion),
        "notes": [*notes(config), *_what_fits(workload, arm)],
    }


def changed(config: RunConfig) -> list[str]:
    """The settings that are not as they are without being given, those of the evaluation as ``eval.NAME``."""
    given, default = config.model_dump(), build({}).model_dump()
    inner = [f"eval.{name}" for name, value in given["eval"].items() if value != default["eval"][name]]
    return [name for name in given if name != "eval" and given[name] != default[name]] + inner


def work(config: RunConfig, problems: int, longest_prompt: int, completion: int) -> dict[str, Any]:
    """What the training does: counts, and tokens at most (every prompt the longest, every completion cut off)."""
    a_step = config.rollouts // config.group
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


def evaluation_work(config: RunConfig, problems: int, completion: int) -> dict[str, Any]:
    """The two measurements, before and after: completions and tokens at most, of both together."""
    problems = min(config.eval.problems or problems, problems)
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


def _completions_at_once(config: RunConfig) -> tuple[int, int]:
    """How many at most, and of how many prompts: all rollouts of a step, or what an evaluation takes together."""
    problems, each = config.eval.problems or config.eval.batch_size, config.eval.samples + 1
    asked = min(problems * each, config.eval.batch_size)
    return max(config.rollouts, asked), max(config.rollouts // config.group, -(-asked // each))


def _what_fits(workload: Workload, arm: ArmPlan) -> list[str]:
    """Where this machine has not enough memory: the settings nearest to the run's with which it has."""
    memory = machine_memory()
    if memory is None or arm.fits(memory):
        return []
    ways = in_words(what_fits(workload, memory), "micro_batch", "gradient_checkpointing")
    said = f"This needs {arm.peak / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB"
    return [f"{said}. It fits with {ways}."]


def _prompts(task: Any, split: str, tokenizer: Any) -> list[tuple[int, ...]]:
    """The tokens of every prompt of a split."""
    texts = prompt_texts(list(task.problems(split)["prompt"]), tokenizer, task)
    if not texts:
        raise ValueError(f"The {split} split of task {task.name} has no problems.")
    return [tuple(ids) for ids in tokenizer(text=texts)["input_ids"]]
