from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from multiticket import config
from multiticket.train import recipe as recipe_module
from multiticket.train.grpo_options import OURS, UNFIT, checked
from multiticket.train.recipe import grpo_config


def _arguments(options: dict[str, Any], folder: Path) -> GRPOConfig:
    return grpo_config(config.build({"grpo": options}), folder, 8)


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
        ({"learning_rate": 1.0}, "own learning_rate: set that instead."),
        ({"max_steps": 3}, "own steps: set that"),
        ({"seed": 3}, "own seed: set that"),
        ({"output_dir": "x"}, "own --output: set that"),
        ({"hub_token": "secret"}, "would be written into config.json"),
        ({"top_p": "many"}, "TRL's top_p should be a valid number"),
        ({"gradient_checkpointing": "perhaps"}, "TRL's gradient_checkpointing should be a valid boolean"),
        ({"use_vllm": True}, "pip install 'trl[vllm]'"),
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
        with pytest.raises(ValueError, match=r"decided by|cannot be set"):
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
