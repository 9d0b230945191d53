"""An attached model works under ``fully_shard`` as it is: the same values, weights and refusals on every rank."""

from __future__ import annotations

import math

import pytest
from two_ranks import of_case, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run("fsdp2_worker.py", tmp_path_factory.mktemp("fsdp2"))


@pytest.mark.parametrize(
    ("case", "control", "tolerance"),
    [
        ("sgd", "control sgd", 1e-6),
        ("fp64", "control fp64", 1e-12),
        ("adamw", "control adamw", 1e-6),
        ("kept whole", "control sgd", 1e-6),
        ("recomputed", "control sgd", 1e-6),
    ],
)
def test_two_ranks_end_as_one_process_on_the_joint_batch(ranks, case, control, tolerance):
    for figures, plain in zip(of_case(ranks, case), of_case(ranks, control), strict=True):
        assert figures["moved"] > 0.03
        assert figures["difference"] < tolerance, f"plain training differs by {plain['difference']}"
        assert figures["fp32 values against one process"] < tolerance
        assert plain["difference"] < tolerance


@pytest.mark.parametrize("case", ["sgd", "fp64", "adamw", "kept whole", "recomputed", "policy"])
def test_weights_hold_the_values_at_global_positions_and_nothing_else_moved(ranks, case):
    first, second = of_case(ranks, case)
    for figures in (first, second):
        assert figures["values against weights"] == 0
        assert figures["moved outside the mask"] == 0
    assert len({*first["positions"], *second["positions"]}) == 1


def test_values_and_frozen_weights_are_both_sharded(ranks):
    first, second = of_case(ranks, "sgd")
    assert first["own values"] + second["own values"] == first["nnz"]
    assert first["own values"] / first["nnz"] == pytest.approx(0.5, abs=0.05)
    everything = first["own weights"] + second["own weights"]
    assert first["own weights"] / everything == pytest.approx(0.5, abs=0.05)


def test_fp32_values_beside_bf16_weights_are_bitwise_those_of_one_process(ranks):
    for figures in of_case(ranks, "bf16"):
        assert figures["dtypes"] == ["torch.bfloat16 False", "torch.float32 True"]
        assert figures["moved"] > 0.03
        assert figures["difference"] == 0
        assert figures["values against weights"] == 0


def test_a_policy_that_casts_parameters_trains_fp32_values_and_rounds_their_gradients(ranks):
    for figures in of_case(ranks, "policy"):
        assert figures["value dtypes"] == ["torch.float32"]
        assert 0 < figures["difference"] < 0.01 * figures["moved"]


def test_a_step_while_the_root_is_whole_reaches_the_shards(ranks):
    for figures in of_case(ranks, "root whole"):
        assert figures["root was whole"]
        assert figures["moved"] > 0.03
        assert figures["difference"] == 0
        assert figures["logits"] == 0


def test_disabled_shows_the_base_and_leaves_a_graph_made_before_whole(ranks):
    for figures in of_case(ranks, "disabled"):
        assert figures["base was another"] > 0.03
        assert figures["inside"] == figures["logits"] == 0
        assert figures["nested"]
        assert figures["after"] == figures["logits after"] == 0
        assert figures["gradients"] < 1e-6


def test_training_resumes_bit_for_bit_from_either_state(ranks):
    for figures in of_case(ranks, "resume"):
        assert figures["own state"] == figures["torch state"] == figures["loaded"] == 0
        assert figures["in one process"] == 0
        assert figures["fingerprints"][0] == figures["fingerprints"][1]


def test_one_rank_alone_can_read_the_ticket(ranks):
    for figures in of_case(ranks, "one rank"):
        assert figures["difference"] == 0


def test_the_ticket_that_one_rank_saves_makes_the_trained_model(ranks):
    for figures in of_case(ranks, "ticket file"):
        assert figures["least"] == 1
        assert figures["moved"] > 0.03
        assert figures["difference"] == 0


@pytest.mark.parametrize("case", ["accelerate", "accelerate efficient"])
def test_what_accelerate_prepares_trains_a_tied_model(ranks, case):
    pytest.importorskip("accelerate")
    for figures in of_case(ranks, case):
        assert figures["sharded"]
        assert figures["values"] == figures["nnz"]
        assert figures["moved"] > 0.01
        assert figures["difference"] < 1e-5 * math.ceil(figures["moved"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("dense alone", "load it first, then attach and shard"),
        ("detach", "cannot be detached; save the ticket"),
        ("by hand", "call flush() on the attachment"),
        ("ticket", "call flush() on the attachment"),
        ("after flush", "nothing was raised"),
        ("early optimizer", "make it after sharding"),
        ("sharded already", "attach first, then call fully_shard"),
        ("columns", "fully_shard splits rows"),
    ],
)
def test_what_cannot_work_is_said_on_every_rank(ranks, call, words):
    for figures in of_case(ranks, "refusals"):
        assert words in figures[call]
