from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiticket import config
from multiticket.arms.facts import ARMS
from multiticket.config.older_names import by_older_names

KNOWN = " or ".join(", ".join(map(repr, ARMS)).rsplit(", ", 1))


def test_defaults_are_the_papers_recipe_at_the_small_size() -> None:
    run = config.build({})
    assert (run.rollouts, run.group, run.temperature) == (512, 16, 1.0)
    assert (run.weight_decay, run.clip_norm) == (0.01, 1.0)
    assert (run.arm, run.density, run.dtype) == ("ticket", 0.01, "float32")
    assert run.micro_batch == 512


def test_the_rate_is_found_unless_it_is_given() -> None:
    for settings in ({}, {"arm": "full"}, {"learning_rate": None}, {"model": "some-one/some-model"}):
        assert config.build(settings).learning_rate == "auto"
    assert config.build({"learning_rate": 1e-3}).learning_rate == 1e-3
    with pytest.raises(ValueError, match="Learning_rate auto needs each step's KL"):
        config.build({"kl_rollouts": 0})


def test_what_was_measured_on_the_shipped_bases_is_taken_for_those_alone() -> None:
    assert config.build({}).usual_rate == pytest.approx(1e-2)
    assert config.build({"arm": "full"}).usual_rate == pytest.approx(1e-4)
    assert config.build({"arm": "lora", "lora_alpha": 32}).usual_rate == pytest.approx(1e-2 / 32)
    other = config.build({"model": "some-one/some-model"})
    assert other.usual_rate == pytest.approx(5e-4)


def test_the_full_arm_has_density_one() -> None:
    assert config.build({"arm": "full"}).density == 1.0


def test_settings_that_carry_their_unit_are_read_by_their_older_names(tmp_path: Path) -> None:
    old = {"target_kl": 0.3, "collapse": {"kl": 0.5}}
    new = {"target_kl_per_completion": 0.3, "collapse": {"kl_per_token": 0.5}}
    assert config.build(old) == config.build(new)
    file = tmp_path / "run.yaml"
    file.write_text("target_kl: 0.2\ncollapse: {kl: 0.4, kl_steps: 3}\n")
    run = config.load(file, new)
    assert (run.target_kl_per_completion, run.collapse.kl_per_token, run.collapse.kl_steps) == (0.3, 0.5, 3)
    with pytest.raises(
        ValueError, match="Target_kl is the old name of target_kl_per_completion: give only one"
    ):
        config.build({"target_kl": 0.3, "target_kl_per_completion": 0.3})
    named_as_before = by_older_names(config.build(new).model_dump())
    assert named_as_before["target_kl"] == 0.3
    assert named_as_before["collapse"]["kl"] == 0.5
    assert config.build(named_as_before) == config.build(new)


def test_training_seed_follows_seed_unless_given() -> None:
    assert config.build({"seed": 7}).training_seed == 7
    assert config.build({"seed": 7, "training_seed": 3}).training_seed == 3


@given(density=st.floats())
def test_density_is_accepted_in_its_interval_only(density: float) -> None:
    if 0 < density <= 1:
        assert config.build({"density": density, "learning_rate": 1e-3}).density == density
    else:
        with pytest.raises(ValueError, match=r"^density "):
            config.build({"density": density, "learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"arm": "half"}, f"arm should be {KNOWN}, but is 'half'."),
        ({"arm": "full", "density": 0.01}, "The full arm trains every parameter"),
        ({"steps": 0}, "steps should be greater than or equal to 1, but is 0."),
        ({"learning_rate": -1.0}, "learning_rate should be greater than 0, but is -1.0."),
        ({"seed": -1}, "seed should be greater than or equal to 0, but is -1."),
        ({"rollouts": 100, "group": 16}, "Rollouts (100) must be a multiple of group (16)"),
        ({"rollouts": 64, "micro_batch": 48}, "Rollouts (64) must be a multiple of micro_batch (48)"),
        ({"learning-rate": 1}, "Unknown setting 'learning-rate'; the settings are arm, "),
        ({"eval": {"problem": 1}}, "Unknown setting 'eval.problem'; the settings are batch_size, "),
        ({"eval": {"split": "dev"}}, "eval.split should be 'train', 'validation' or 'test', but is 'dev'."),
        ({"density": "many"}, "density should be a valid number"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        config.build(settings)
    sentence = str(raised.value)
    assert sentence.startswith(says)
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_options_go_before_the_file_and_nested_ones_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: alphabet_sort\nlearning_rate: 1e-3\nsteps: 7\neval: {problems: 10, samples: 2}\n")
    run = config.load(file, {"steps": 9, "eval": {"samples": 3}})
    assert (run.task, run.learning_rate, run.steps) == ("alphabet_sort", 1e-3, 9)
    assert (run.eval.problems, run.eval.samples) == (10, 3)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "just words", "1: 2\n"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml"):
        config.load(file, {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Cannot read the settings"):
        config.load(tmp_path / "none.yaml", {})


def test_settings_survive_json() -> None:
    run = config.build({"density": 0.003, "seed": 5, "eval": {"problems": None}})
    assert config.build(run.model_dump(mode="json")) == run


def test_default_folders_differ_where_runs_do() -> None:
    settings: list[dict[str, object]] = [
        {},
        {"arm": "full"},
        {"seed": 1},
        {"part": 1},
        {"density": 0.001},
        {"task": "alphabet_sort"},
        {"arm": "full", "seed": 1},
        {"task": "a:b"},
    ]
    names = [config.build(given).default_output() for given in settings]
    assert len(set(names)) == len(names)
    assert all(len(name.parts) == 2 and name.parts[0] == "runs" for name in names)


def test_settings_are_checked_without_torch() -> None:
    code = "import sys; from multiticket import config; config.build({}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_named_after_a_task_with_options_of_any_length() -> None:
    options = "my:score@data/a b.jsonl,system_prompt=Think: then, say *it*." + "!" * 300
    name = config.build({"task": options}).default_output().name
    assert len(name) < 200
    assert re.fullmatch(r"my_score@data_a_b\.jsonl_system_prompt=[A-Za-z0-9._@+=-]*", name)
    assert config.build({"task": options + "!"}).default_output().name != name


def test_rollouts_by_vllm_and_trls_use_vllm_are_one_setting() -> None:
    asked = config.build({"rollouts_by": "vllm", "grpo": {"vllm_mode": "server"}})
    assert asked.grpo == {"vllm_mode": "server", "use_vllm": True}
    assert config.build({"grpo": {"use_vllm": True}}).rollouts_by == "vllm"
    assert config.build(asked.model_dump()) == asked
    assert config.build({}).rollouts_by == "transformers"
    for by, use in [("transformers", True), ("vllm", False)]:
        with pytest.raises(ValueError, match="contradict each other"):
            config.build({"rollouts_by": by, "grpo": {"use_vllm": use}})
