"""RLVRTrainer on two ranks: beside one process and plain training, what travels, what is saved, and who writes it."""

from __future__ import annotations

import pytest
import torch
from rank_trainers import COMPLETION, logged, make_trainer, trained
from safetensors.torch import load_file
from two_ranks import differs, of_case, run

SETTINGS = {
    "control": {"masked": False},
    "adamw": {"optimizer": "adamw"},
    "untied": {"family": "llama"},
    "bf16": {"optimizer": "adamw", "dtype": torch.bfloat16, "learning_rate": 1e-4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    return run("sharded_trainer_worker.py", folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process on the joint rollouts: what was trained, how far it moved, and its log."""
    found = {}
    for name, settings in SETTINGS.items():
        trainer = make_trainer(tmp_path_factory.mktemp("alone"), **settings)
        before = trained(trainer)
        trainer.train()
        found[name] = (trained(trainer), differs(trained(trainer), before), trainer)
    return found


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("ddp control", "control"),
        ("fsdp2 control", "control"),
        ("fsdp2 adamw", "adamw"),
        ("fsdp2 untied", "untied"),
    ],
)
def test_two_ranks_end_where_one_process_does(ranks, alone, folder, case, name):
    """The controls train all weights without an attachment: they say what of a difference is the ranks' own."""
    wanted, moved, trainer = alone[name]
    for figures in of_case(ranks, case):
        assert figures["sharded"] == case.startswith("fsdp2")
        assert figures["wrapped"] == case.startswith("ddp")
        if name != "untied":  # which does two passes a step, and estimates the KL on the rollouts of the last
            assert figures["kl"] == pytest.approx(logged(trainer, "kl"), rel=1e-3)
    assert moved > 1e-2
    assert differs(load_file(folder / f"{case}.safetensors"), wanted) < 1e-6


def test_trls_fused_head_trains_a_head_that_is_sharded_on_its_own(ranks):
    for figures in of_case(ranks, "fsdp2 head"):
        assert figures["head moved"] > 1e-2
        assert figures["difference"] < 1e-6


@pytest.mark.parametrize("case", ["ddp bf16", "fsdp2 bf16"])
def test_what_rounding_hides_is_counted_over_all_ranks(ranks, alone, case):
    """Every rank logs one figure for all values: under FSDP2 each holds half of them."""
    _, _, trainer = alone["bf16"]
    one, two = of_case(ranks, case)
    assert one["hidden"] == two["hidden"]
    assert all(0.1 < hidden < 0.95 for hidden in one["hidden"])
    assert one["hidden"] == pytest.approx(logged(trainer, "hidden_by_rounding"), abs=0.03)


def test_four_bytes_a_value_travel_each_step(ranks):
    for figures in of_case(ranks, "ddp bytes"):
        assert figures["reduced"] == [4 * figures["nnz"]] * 4


@pytest.mark.parametrize("case", ["ddp save", "fsdp2 save", "fsdp2 save all"])
def test_what_a_person_saves_is_a_plain_checkpoint_of_the_trained_model(ranks, case):
    figures, _ = of_case(ranks, case)
    assert figures["unlike"] == []
    assert figures["class"] == ["Qwen2ForCausalLM"]
    assert "model.safetensors" in figures["files"]
    assert "tokenizer.json" in figures["files"]
    assert figures["plain"] == 0
    assert figures["moved"] > 1e-2
    assert figures.get("ticket", 0.0) == 0


def test_a_sharded_model_generates_and_trains_on_what_it_said(ranks):
    for figures in of_case(ranks, "fsdp2 generates"):
        assert len(figures["lengths"]) == len(figures["rewards"]) == 2
        assert all(0 < length <= COMPLETION for length in figures["lengths"])
        assert min(figures["rewards"]) > 0
        assert min(figures["kl"]) > 0
        assert figures["moved"] > 1e-3
