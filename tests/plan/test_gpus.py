"""What each of several GPUs holds: counted from the sizes of a real model's parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2Config

from multiticket.plan.gpus import GpuPlan, on_gpus
from multiticket.plan.memory import Plan, plan
from multiticket.plan.workload import Workload

WIDTH, INNER, WORDS, LAYERS = 64, 128, 256, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Qwen2Config(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    return folder


def planned(folder: Path, arm: str, **more: object) -> Plan:
    workload = Workload(str(folder), density=0.05, tokens=32, batch=2, arms=(arm,), **more)  # type: ignore[arg-type]
    return plan(workload)


def each(plan: Plan, gpus: int) -> dict[str, GpuPlan]:
    return {one.strategy: one for one in on_gpus(plan, plan.arms[0], gpus)}


def test_units_are_the_models_layers_and_what_is_left(folder: Path) -> None:
    units = planned(folder, "ticket").units
    attention = 2 * WIDTH * WIDTH + WIDTH + 2 * (WIDTH * WIDTH // 2 + WIDTH // 2)
    layer = attention + 3 * WIDTH * INNER + 2 * WIDTH
    assert (units.largest, units.layers) == (2 * layer, 2 * LAYERS * layer)
    assert units.rest == 2 * (2 * WORDS * WIDTH + WIDTH)


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_data_parallelism_adds_the_gradients_in_exchange(folder: Path, arm: str) -> None:
    whole = planned(folder, arm)
    (one,) = whole.arms
    found = each(whole, 4)["ddp"]
    assert found.state == one.state + one.gradients
    assert found.peak == one.peak + one.gradients
    assert found.sent == 2 * one.gradients * 3 // 4
    assert each(whole, 1)["ddp"].sent == 0
    assert each(whole, 1)["ddp"].peak == one.peak


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_shards_are_a_part_of_all_but_positions(folder: Path, arm: str) -> None:
    whole = planned(folder, arm)
    (one,) = whole.arms
    found = each(whole, 4)["fsdp2"]
    shared = one.weights + one.values + one.gradients + one.moments
    assert found.state == pytest.approx(one.state - shared * 3 / 4, abs=4)
    assert found.training > found.state + one.activations
    assert found.generation >= one.weights + one.cache
    many = each(whole, 64)["fsdp2"]
    assert many.state < found.state
    assert many.training < found.training


def test_a_ticket_sends_its_share_of_what_full_training_sends(folder: Path) -> None:
    full, ticket = planned(folder, "full"), planned(folder, "ticket")
    ratio = each(ticket, 8)["ddp"].sent / each(full, 8)["ddp"].sent
    assert ratio == pytest.approx(ticket.nnz / full.parameters, rel=1e-4)


def test_a_quantised_base_is_not_sharded(folder: Path) -> None:
    assert list(each(planned(folder, "ticket", quantised="nf4"), 8)) == ["ddp"]
