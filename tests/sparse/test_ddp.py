"""An attached model works in DistributedDataParallel as it is, and ranks exchange the values' gradients alone."""

from __future__ import annotations

import pytest
from two_ranks import of_case, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run("ddp_worker.py", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_ranks_end_as_one_process_on_the_joint_batch(ranks, optimizer):
    for figures in of_case(ranks, optimizer):
        assert figures["moved"] > 0.03
        assert figures["values"] < 1e-6, f"plain training differs by {figures['control']}"
        assert figures["control moved"] > 0.03
        assert figures["control"] < 1e-6


def test_four_bytes_a_value_are_reduced_and_no_frozen_weight(ranks):
    for figures in of_case(ranks, "bytes"):
        assert figures["nnz"] > 0
        assert figures["reduced"] == [4 * figures["nnz"]] * 3
        assert figures["frozen with gradient"] == []


def test_gradients_accumulate_without_a_reduction(ranks):
    for figures in of_case(ranks, "accumulation"):
        assert figures["largest"] > 1e-3
        assert figures["gradients"] < 1e-6


def test_an_accelerators_own_loop_ends_as_one_process_and_resumes_at_the_same_bits(ranks):
    pytest.importorskip("accelerate")
    for figures in of_case(ranks, "accelerator"):
        assert figures["kind"] == "DistributedDataParallel"
        assert figures["moved"] > 0.03
        assert figures["difference"] < 1e-6
        assert figures["resumed"] == 0


def test_a_model_wrapped_before_attach_is_refused(ranks):
    for figures in of_case(ranks, "wrapped first"):
        assert "attach first" in figures["message"]
        assert figures["still trains"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fsdp1", "FSDP1) flattens the weights"),
        ("tensor parallel", "Tensor parallelism"),
        ("fsdp1 afterwards", "requires_grad"),
    ],
)
def test_weights_that_are_elsewhere_are_refused(ranks, how, words):
    for figures in of_case(ranks, how):
        assert words in figures["message"]
