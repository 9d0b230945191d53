"""What is compared, by number: the shapes, the arms' trained values, what a step should cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from multiticket.research.bench.operations import attention_operations, predict, predicted_over_floor
from multiticket.research.bench.shapes import SHAPES, Shape, choose_shape
from multiticket.research.bench.timed_arms import (
    ADAPTERS,
    BY_PATH,
    KINDS,
    Arm,
    choose_arms,
    comparable,
    expected_values,
    refuse_unmatched,
)
from multiticket.research.bench.timed_process import Step, StepSetup, build_model, prepare
from multiticket.sparse.watching import attachments_of

TINY = choose_shape("36M", layers=2, width=128, vocabulary=1000)
FLOOR = Arm("floor", "floor")


def setup(arm: Arm, shape: Shape = TINY) -> StepSetup:
    return StepSetup(shape, arm, batch=2, tokens=16, dtype="float32", device="cpu")


def test_the_named_shapes_are_the_models_they_are_called_after() -> None:
    assert SHAPES["36M"].parameters == 35_668_480
    assert SHAPES["0.5B"].parameters == 494_032_768  # Qwen2.5-0.5B, as its authors count it
    assert SHAPES["1.5B"].parameters == 1_543_714_304


def test_tensor_sizes_are_those_of_the_model() -> None:
    model = build_model(setup(FLOOR))
    blocks = [size for block in model.model.layers for size in _block_sizes(block)]
    ends = [model.model.embed_tokens.weight.numel(), model.model.norm.weight.numel()]
    assert TINY.tensor_sizes == [ends[0], *blocks, ends[1]]
    assert TINY.parameters == sum(parameter.numel() for parameter in model.parameters())


def _block_sizes(block: torch.nn.Module) -> list[int]:
    sizes = {name: parameter.numel() for name, parameter in block.named_parameters()}
    kinds = [lambda n: "proj.weight" in n, lambda n: "bias" in n, lambda n: "norm" in n]
    return [size for kind in kinds for name, size in sizes.items() if kind(name)]


@pytest.mark.parametrize("arm", choose_arms(TINY, [*KINDS[1:], *BY_PATH], [0.1, 0.01]), ids=str)
def test_every_arm_trains_as_many_values_as_expected(arm: Arm) -> None:
    _, trained = prepare(arm, TINY, build_model(setup(arm)))
    assert sum(parameter.numel() for parameter in trained) == expected_values(TINY, arm)


@pytest.mark.parametrize("kind", BY_PATH)
def test_an_arm_is_attached_by_the_path_it_names(kind: str) -> None:
    (arm,) = choose_arms(TINY, [kind], [0.01])
    assert arm.path in arm.name
    model, trained = prepare(arm, TINY, build_model(setup(arm)))
    (attachment,) = attachments_of(trained)
    assert attachment.model is model
    assert attachment.path == arm.path
    assert attachment.mask.rule.method == ("columns" if kind == "hooks-columns" else "random")


@pytest.mark.parametrize("name", SHAPES)
def test_the_rivals_and_a_ticket_on_their_modules_train_as_many_values(name: str) -> None:
    shape = SHAPES[name]
    arms = {arm.kind: arm for arm in choose_arms(shape, KINDS, [0.01])}
    count = {kind: expected_values(shape, arm) for kind, arm in arms.items()}
    assert {count[kind] for kind in ADAPTERS} == {count["lora"]}
    assert count["linear"] == pytest.approx(count["lora"], rel=0.001)
    assert abs(count["ticket"] - count["lora"]) <= shape.values_per_rank / 2 + len(shape.tensor_sizes)


def test_at_36m_all_one_percent_arms_are_comparable() -> None:
    shape = SHAPES["36M"]
    arms = choose_arms(shape, ["ticket", "columns", "linear", *ADAPTERS], [0.01])
    lora = expected_values(shape, arms[-1])
    assert all(comparable(expected_values(shape, arm), lora) for arm in arms)


def test_rivals_without_a_ticket_of_their_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no ticket .* within 2 %; add the arm 'linear'"):
        choose_arms(SHAPES["36M"], ["ticket", "lora"], [0.001])
    assert choose_arms(SHAPES["36M"], ["full", "lora"], [0.001])  # nothing that could be taken for its equal
    arms = choose_arms(SHAPES["36M"], ["ticket", "lora"], [0.01])
    with pytest.raises(ValueError, match="LoRA, rank 4 trains 400 values"):
        refuse_unmatched(arms, {arms[0].name: 100, arms[1].name: 400})


@given(st.integers(1, 10**9), st.integers(1, 10**9))
@settings(max_examples=50)
def test_comparable_is_symmetric_and_means_two_percent(a: int, b: int) -> None:
    assert comparable(a, b) == comparable(b, a) == (min(a, b) >= 0.98 * max(a, b) - 1e-6)


@pytest.mark.parametrize(
    ("kinds", "densities", "sentence"),
    [
        (["full", "all"], [0.01], "The arms are some of"),
        (["full", "full"], [0.01], "each once"),
        ([], [0.01], "The arms are some of"),
        (["ticket"], [0.0], "above 0 and at most 1"),
        (["ticket"], [0.1, 0.1], "must differ"),
    ],
)
def test_mistakes_are_told(kinds: list[str], densities: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose_arms(TINY, kinds, densities)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"width": 100}, "multiple of 64"), ({"layers": 0}, "at least 1"), ({"vocabulary": -1}, "at least 1")],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose_shape("36M", **changes)
    with pytest.raises(ValueError, match="There is no shape '7B'"):
        choose_shape("7B")


@pytest.mark.parametrize("kind", ["floor", "full", *ADAPTERS])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    """torch counts the products of matrices, and attention not at all where a CPU's flash kernel does it."""
    arm = choose_arms(TINY, [kind], [0.01])[0]
    chosen = setup(arm)
    model, trained = prepare(arm, TINY, build_model(chosen))
    step = Step(chosen, model, trained)
    with FlopCounterMode(display=False) as counter:
        step()
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in counted.items() if "attention" not in name)
    attention = 3.5 * attention_operations(TINY, 2, 16)
    assert predict(TINY, arm, 2, 16).total - attention == pytest.approx(products, rel=1e-6)


def test_predictions_lie_between_the_floor_and_full_training() -> None:
    shape = SHAPES["36M"]
    arms = {arm.name: arm for arm in choose_arms(shape, KINDS, [0.1, 0.01, 0.001])}
    over = {name: predicted_over_floor(shape, arm, 4, 256) for name, arm in arms.items()}
    assert (
        over["floor"]
        == 1
        < over["ticket 0.1 %"]
        < over["ticket 1 %"]
        < over["ticket 10 %"]
        < over["full"]
        < 1.5
    )
    assert over["ticket 1 %"] < over["LoRA, rank 4"]
    assert over["ticket 1 %"] - 1 == pytest.approx(0.01 * (over["full"] - 1), rel=0.01)
