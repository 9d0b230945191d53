from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small
from transformers import AutoTokenizer
from trl import GRPOConfig

from multiticket import config
from multiticket.train import recipe as recipe_module
from multiticket.train.grpo_options import OURS, SCHEDULES, UNFIT, checked
from multiticket.train.recipe import grpo_config
from multiticket.train.run import run_training


def _arguments(options: dict[str, Any], folder: Path) -> GRPOConfig:
    return grpo_config(config.build({"grpo": options, "learning_rate": 1e-2}), folder, 8)


def test_options_go_last_and_keep_their_type(tmp_path: Path) -> None:
    options = {"loss_type": "dr_grpo", "epsilon": 1, "top_p": 0.9, "lr_scheduler_type": "linear"}
    with_options, plain = _arguments(options, tmp_path), _arguments({}, tmp_path)
    assert (with_options.loss_type, plain.loss_type) == ("dr_grpo", "dapo")
    assert with_options.epsilon == 1.0
    assert isinstance(with_options.epsilon, float)
    assert with_options.lr_scheduler_type == "linear"
    changed = {f.name for f in dataclasses.fields(plain) if f.init}
    changed = {name for name in changed if getattr(with_options, name) != getattr(plain, name)}
    assert changed == set(options)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"vllm_mod": "server"}, "no option 'vllm_mod'; the nearest are vllm_mode"),
        ({"zzzz": 1}, "no option 'zzzz'; see the fields of trl.GRPOConfig."),
        ({"learning_rate": 1.0}, "give --learning-rate."),
        ({"max_steps": 3}, "give --steps"),
        ({"seed": 3}, "give --seed"),
        ({"output_dir": "x"}, "give --output"),
        ({"hub_token": "secret"}, "would be written into config.json"),
        ({"top_p": "many"}, "TRL's top_p should be a valid number"),
        ({"gradient_checkpointing": "perhaps"}, "TRL's gradient_checkpointing should be a valid boolean"),
        ({"use_vllm": True}, "pip install 'trl[vllm]'"),
        ({"deepspeed": "x.json"}, "accelerate's own to say"),
        ({"fsdp": "full_shard"}, "accelerate's own to say"),
        ({"sync_ref_model": True}, "the reference policy is fixed"),
        ({"reward_weights": [1.0]}, "a task has one score"),
        ({"remove_unused_columns": True}, "the score needs the problems' answers"),
        ({"auto_find_batch_size": True}, "use micro_batch for the size of a pass"),
        ({"optim": "lomo"}, "The optimiser 'lomo' is not installed: You need to install"),
        ({"optim": "no-such"}, "no-such is not a valid OptimizerNames"),
        ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers above 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_sentence(
    option: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"\.$") as refusal:
        _arguments(option, tmp_path / "run")
    assert says in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_what_trl_itself_refuses_is_said_with_the_options_names(tmp_path: Path) -> None:
    run = config.build({"rollouts": 32, "group": 16, "micro_batch": 4, "grpo": {"steps_per_generation": 1}})
    with pytest.raises(ValueError, match=r"TRL refuses the options steps_per_generation: .*divisible"):
        grpo_config(run, tmp_path, 8)


def test_all_that_the_recipe_decides_is_known_to_trl_and_what_a_setting_decides_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(OURS) | set(UNFIT) <= known
    free = {
        "loss_type",
        "scale_rewards",
        "num_iterations",
        "disable_dropout",
        "lr_scheduler_type",
        "adam_beta1",
    }
    free |= {"adam_beta2", "bf16", "fp16", "gradient_checkpointing", "use_cpu", "report_to", "disable_tqdm"}
    free |= {"log_level", "dataloader_pin_memory", "project", "run_name"}
    monkeypatch.setattr(recipe_module, "with_options", lambda recipe, _: recipe)
    recipe: Any = grpo_config(config.build({"learning_rate": 1e-2}), tmp_path, 8)
    for name in set(recipe) - free:
        with pytest.raises(ValueError, match=r"is not set by|cannot be set"):
            checked({name: recipe[name]})


def test_options_are_read_from_words() -> None:
    words = ["use_vllm=true", "top_p=0.9", "epsilon=3e-1", "vllm_mode=server", "generation_kwargs={seed: 3}"]
    assert config.read_options(words) == {
        "use_vllm": True,
        "top_p": 0.9,
        "epsilon": 0.3,
        "vllm_mode": "server",
        "generation_kwargs": {"seed": 3},
    }
    for wrong in (["top_p"], ["=3"], ["top p=3"], ["top_p=1", "top_p=2"], ["top_p=[1"]):
        with pytest.raises(ValueError, match=r"\.$"):
            config.read_options(wrong)


def test_options_on_the_command_line_go_before_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("grpo:\n  epsilon: 1e-1\n  top_p: 0.5\n")
    assert config.load(path, {"grpo": {"top_p": 0.9}}).grpo == {"epsilon": 0.1, "top_p": 0.9}
    with pytest.raises(ValueError, match="grpo should be a valid dictionary"):
        config.build({"grpo": ["top_p"]})


WORK: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 0.4},
    "warmup_steps": 1,
    "optim": "adamw_torch",
    "optim_args": "unknown=1",
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "bf16": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "use_cache": True,
    "torch_empty_cache_steps": 1,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "all",
    "log_level": "info",
    "disable_tqdm": False,
    "run_name": "x",
    "project": "x",
    "use_cpu": True,
    "dataloader_drop_last": True,
    "dataloader_pin_memory": True,
    "dataloader_in_order": False,
    "cast_lm_head_to_fp32": True,
    "disable_dropout": False,
    "neftune_noise_alpha": 5.0,
    "pad_to_multiple_of": 8,
    "chat_template_kwargs": {"enable_thinking": False},
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "generation_kwargs": {"num_beams": 1},
    "repetition_penalty": 1.1,
    "epsilon": 0.1,
    "epsilon_high": 0.3,
    "delta": 2.0,
    "importance_sampling_level": "sequence",
    "scale_rewards": "group",
    "loss_type": "grpo",
    "mask_truncated_completions": True,
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_coef_max": 0.5,
    "entropy_coef_min": 0.001,
    "entropy_coef_delta": 0.001,
    "entropy_target": 0.3,
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    "log_unique_prompts": True,
    "num_completions_to_print": 1,
    "log_multimodal": False,
}
"""Options that a run takes, each with another value than the run's own: one run of the toy model takes them all."""
ALONE: list[dict[str, Any]] = [
    {"loss_type": "sapo", "sapo_temperature_neg": 0.9, "sapo_temperature_pos": 0.8},
    {
        "loss_type": "vespo",
        "vespo_k_pos": 1.5,
        "vespo_k_neg": 2.5,
        "vespo_lambda_pos": 2.5,
        "vespo_lambda_neg": 1.5,
    },
    {"num_iterations": 3, "full_determinism": True},
    {"log_completions": True, "debug": "underflow_overflow", "cache_implementation": "static"},
    {
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 3,
        "dataloader_multiprocessing_context": "fork",
    },
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
    {"skip_memory_metrics": False},
    {"trackio_space_id": "me/x", "trackio_bucket_id": "me/y", "trackio_static_space_id": "me/z"},
    {"fp16": True, "bf16": False},
]
"""More of them, at odds with those above: a run each."""
TAKEN = [
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "router_aux_loss_coef",
    "steps_per_generation",
    "use_vllm",
    "use_transformers_paged",
    "use_transformers_continuous_batching",
    "transformers_continuous_batching_config",
]
"""Options that pass, and that the toy runs leave out: for a GPU, another model or package, slow, or tested beside this
(`test_rollouts_kept.py`); vLLM's own beside them."""


def test_every_option_of_trl_is_taken_by_a_run_or_refused_with_a_reason(
    toy_model_folder: Path, tmp_path: Path
) -> None:
    names = {field.name for field in dataclasses.fields(GRPOConfig) if field.init}
    refused = {
        name for name in names if name in UNFIT or name in OURS or name in config.RunConfig.model_fields
    }
    alone = {name for options in ALONE for name in options}
    taken = {*WORK, *alone, *TAKEN, *(name for name in names if name.startswith("vllm_"))}
    assert not refused & taken
    assert names == refused | taken
    for name in refused:
        with pytest.raises(ValueError, match=r"by the run: give --|cannot be set for a run: .*\.$"):
            checked({name: None})
    own = _arguments({}, tmp_path)
    same = {name for name, value in WORK.items() if getattr(own, name) == value}
    assert same <= {"use_cpu"}  # decided by the machine
    assert _steps_of(toy_model_folder, WORK, tmp_path / "run") == 2


@pytest.mark.parametrize("options", ALONE, ids=lambda options: next(iter(options)))
def test_options_that_go_with_few_others(
    options: dict[str, Any], toy_model_folder: Path, tmp_path: Path
) -> None:
    own = _arguments({}, tmp_path)
    assert any(getattr(own, name) != value for name, value in options.items())
    try:
        assert _steps_of(toy_model_folder, options, tmp_path / "run") == 2
    finally:
        torch.use_deterministic_algorithms(False)  # as full_determinism leaves it, for the whole process


def _steps_of(model: Path, options: dict[str, Any], folder: Path) -> int:
    settings = small(model, steps=2, rollouts=16, save_every=None, eval_every=None, grpo=options)
    run_training(settings, folder, show_progress=False)
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_what_trl_refuses_of_a_model_leaves_no_run(toy_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a Mixture-of-Experts model"):
        _steps_of(toy_model_folder, {"router_aux_loss_coef": 0.1}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_chat_template_is_told_what_the_run_says(toy_model_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "chats"
    shutil.copytree(toy_model_folder, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% if thinks %}b{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    for thinks in (True, False):
        settings = small(model, steps=2, rollouts=8, grpo={"chat_template_kwargs": {"thinks": thinks}})
        run_training(settings, tmp_path / str(thinks), show_progress=False)
        lines = (tmp_path / str(thinks) / "samples.jsonl").read_text().splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines]
        assert prompts
        assert all(prompt.startswith("b") == thinks for prompt in prompts), prompts


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_without_a_rate_is_refused(name: str, tmp_path: Path) -> None:
    run = config.build({"grpo": {name: WORK[name]}})
    with pytest.raises(ValueError, match=f"TRL's {name} has no effect with learning_rate auto"):
        grpo_config(run, tmp_path, 8)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("max_completion_tokens", "--max-completion-tokens"),
        ("temperature", "--temperature"),
        ("max_steps", "--steps"),
    ],
)
def test_a_runs_own_setting_is_named_as_the_option_that_it_is(given: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{given} is not set by TRL here but by the run: give {option}."):
        checked({given: 48})
