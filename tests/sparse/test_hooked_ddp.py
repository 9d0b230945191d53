"""On the path of accelerators too, ranks exchange the values' gradients alone and end as one process does."""

from __future__ import annotations

import pytest
from two_ranks import of_case, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run("hooked_ddp_worker.py", tmp_path_factory.mktemp("hooked-ddp"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_ranks_end_as_one_process_on_the_joint_batch(ranks, optimizer):
    for figures in of_case(ranks, optimizer):
        assert figures["moved"] > 0.03
        assert figures["values"] < 2e-6, f"plain training differs by {figures['control']}"


def test_four_bytes_a_value_are_reduced_and_no_frozen_weight(ranks):
    for figures in of_case(ranks, "bytes"):
        assert figures["nnz"] > 0
        assert figures["reduced"] == [4 * figures["nnz"]] * 3
        assert figures["frozen with gradient"] == []


def test_gradients_accumulate_without_a_reduction(ranks):
    for figures in of_case(ranks, "accumulation"):
        assert figures["largest"] > 1e-3
        assert figures["gradients"] < 1e-6


@pytest.mark.parametrize("case", ["checkpointed", "checkpointed, reentrant", "unused looked for"])
def test_checkpointed_or_searched_for_unused_parameters_the_gradient_is_that_of_one_process(ranks, case):
    for figures in of_case(ranks, case):
        assert figures["path"] == "hooks"
        assert figures["largest"] > 1e-3
        assert figures["gradients"] < 1e-6


def test_an_accelerators_own_loop_ends_as_one_process_and_resumes_at_the_same_bits(ranks):
    pytest.importorskip("accelerate")
    for figures in of_case(ranks, "accelerator"):
        assert figures["kind"] == "DistributedDataParallel"
        assert figures["moved"] > 0.03
        assert figures["difference"] < 1e-6
        assert figures["resumed"] == 0
