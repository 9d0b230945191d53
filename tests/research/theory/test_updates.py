"""Updates that were made on purpose: of known rank, inside or outside the principal directions, too small to see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multiticket.research.theory.run_update import matrix_means, update_of_run
from multiticket.research.theory.trajectory import Contexts
from multiticket.research.theory.updates import matrix_update, moved, tensor_updates


@pytest.mark.parametrize("rank", [1, 3, 17])
def test_numerical_rank_survives_fp32(rank: int) -> None:
    """The difference of two rounded matrices has full rank by the usual tolerance; what rounding leaves is not
    counted.
    """
    torch.manual_seed(0)
    weight = torch.randn(40, 60) * 0.05
    delta = torch.randn(40, rank) @ torch.randn(rank, 60) * 1e-5
    after = weight + delta
    assert torch.linalg.matrix_rank(after - weight) > rank
    found = matrix_update(weight, after)
    assert found is not None
    assert found.numerical_rank == rank
    assert 1 <= found.effective.participation <= found.effective.entropy <= rank + 1e-3
    assert found.shuffled.participation > found.effective.participation


def test_equal_directions() -> None:
    """Five singular values of one size: every effective rank says five."""
    q, _ = torch.linalg.qr(
        torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    p, _ = torch.linalg.qr(
        torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    found = matrix_update(torch.zeros(30, 20, dtype=torch.float64), q @ p.T)
    assert found is not None
    assert (found.effective.participation, found.effective.entropy) == pytest.approx((5, 5))
    assert found.effective.energy95 == found.numerical_rank == 5


def test_inside_and_outside_the_principal_directions() -> None:
    weight = torch.diag(torch.arange(20.0, 0, -1, dtype=torch.float64))
    inside, outside = torch.zeros_like(weight), torch.zeros_like(weight)
    inside[0, 1] = 1.0
    outside[7, 9] = 1.0
    left_only = torch.zeros_like(weight)
    left_only[1, 12] = 1.0
    for delta, expected in ((inside, (1, 1, 1)), (outside, (0, 0, 0)), (left_only, (1, 0, 0))):
        found = matrix_update(weight, weight + delta)
        assert found is not None
        assert found.top == 2
        assert (found.left, found.right, found.both) == pytest.approx(expected, abs=1e-12)


def test_a_random_update_lies_there_by_chance() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 80, dtype=torch.float64)
    found = [matrix_update(weight, weight + 0.1 * torch.randn(50, 80)) for _ in range(20)]
    matrices = {str(i): {"kind": "mlp", **_plain(update)} for i, update in enumerate(found)}
    mean = matrix_means(matrices)["all"]
    assert mean["matrices"] == 20
    assert (mean["left"], mean["right"], mean["both"]) == pytest.approx((1, 1, 1), rel=0.05)
    assert mean["entropy"] == pytest.approx(mean["entropy_shuffled"], rel=0.01)
    assert mean["numerical_rank"] == 1


def _plain(update: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(update)  # type: ignore[call-overload, no-any-return]


def test_counts_and_bf16() -> None:
    old = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0])
    new = torch.tensor([1.0, 1.0 + 2**-12, 1.01, 1e-3, 2.0])
    found = moved(old, new)
    assert (found.numel, found.moved, found.visible, found.above) == (5, 3, 2, 2)
    assert found.distance == pytest.approx(float((new - old).norm()))
    assert found.relative == pytest.approx(float((new - old).norm() / old.norm()))


def test_nothing_moved() -> None:
    weight = torch.randn(4, 5)
    assert matrix_update(weight, weight.clone()) is None
    assert matrix_update(torch.ones(3), torch.zeros(3)) is None
    found = tensor_updates({"a": weight}, {"a": weight.clone()})["a"]
    assert found.moved.moved == found.moved.visible == 0
    assert found.moved.relative == 0


def test_other_models() -> None:
    with pytest.raises(ValueError, match="has a tensor b"):
        tensor_updates({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(ValueError, match="shapes"):
        tensor_updates({"a": torch.ones(2)}, {"a": torch.ones(3)})


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_of_runs(arm: str, toy_runs: dict[str, Path]) -> None:
    found = update_of_run(toy_runs[arm], Contexts("validation", 5, 3, 0))
    everything = found["moved"]["all"]
    share = everything["moved"] / everything["numel"]
    assert found["kl_from_base"]["completion"] > 0
    if arm == "full":
        assert share > 0.9
    elif arm == "ticket":
        assert everything["moved"] <= found["nnz"]
        assert share == pytest.approx(0.1, abs=0.01)
    else:
        ranks = [row["numerical_rank"] for row in found["matrices"].values() if row]
        assert max(ranks) <= 3  # the adapter's, however the merged weights were rounded
        assert found["moved"]["norms"]["moved"] == 0


def test_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        update_of_run(tmp_path, Contexts("validation", 5, 3, 0))
