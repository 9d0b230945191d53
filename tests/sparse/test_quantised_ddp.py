"""A quantised model trains on two ranks as on one."""

from __future__ import annotations

import pytest
from quantised_models import needs_bitsandbytes, needs_torchao
from two_ranks import of_case, run

pytestmark = [needs_bitsandbytes, needs_torchao]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run("quantised_ddp_worker.py", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("kind", ["nf4", "torchao-int8"])
def test_two_ranks_end_as_one_process_on_the_joint_batch(ranks, kind):
    for figures in of_case(ranks, kind):
        assert figures["moved"] > 1e-3
        assert figures["difference"] < 1e-6
