"""A sync arrives whole or not at all, however it is cut, and is then repeated."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import SHAPES

from multiticket.integrations.vllm.description import describe, described
from multiticket.integrations.vllm.staging import Staging
from multiticket.integrations.vllm.sync import TicketSync
from multiticket.mask import Mask, MaskRule

MASK = Mask.from_shapes(SHAPES, MaskRule("random", 0.5))


class Cut(Exception):
    pass


class StandIn:
    """vLLM's worker as far as a weight update goes, with an engine as ours behind it; breaks off where told."""

    def __init__(self) -> None:
        self.weights = torch.zeros(MASK.nnz)
        self.staging = Staging(MASK.nnz)
        self.active = self.paused = False
        self.calls = 0
        self.cut_before: int | None = None
        self.cut_after: int | None = None
        self.version: str | None = None

    def _call(self, act) -> None:  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == self.cut_before:
            raise Cut
        act()
        if self.calls == self.cut_after:
            raise Cut

    def pause(self) -> None:
        self._call(lambda: setattr(self, "paused", True))

    def resume(self) -> None:
        self._call(lambda: setattr(self, "paused", False))

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        mask = described(**{key: json.loads(json.dumps(init_info))[key] for key in ("rule", "tensors")})
        assert mask.nnz == MASK.nnz

    def start_weight_update(self) -> None:
        def start() -> None:
            if self.active:
                raise RuntimeError("already active")
            self.staging.forget()
            self.active = True

        self._call(start)

    def update_weights(self, update_info: dict) -> None:
        def update() -> None:
            if not self.active:
                raise RuntimeError("not active")
            told = json.loads(json.dumps(update_info))
            try:
                data = base64.b64decode(told["values"])
                self.staging.add(told["sync"], told["offset"], told["dtype"], data)
            except BaseException:
                self.active = False
                raise

        self._call(update)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        def finish() -> None:
            if not self.active:
                raise RuntimeError("not active")
            if self.staging.sync is not None:
                assert self.paused
                self.weights = self.staging.whole().float()
            self.active = False
            self.version = weight_version or self.version

        self._call(finish)


@settings(deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), piece=st.integers(4, 900))
def test_a_cut_sync_changes_nothing_and_is_repeated_whole(
    data: st.DataObject, dtype: torch.dtype, piece: int
) -> None:
    engine = StandIn()
    sync = TicketSync(engine, MASK, "0" * 64, piece_bytes=piece)
    first = torch.randn(MASK.nnz).to(dtype)
    sync.send(first, "first")
    assert torch.equal(engine.weights, first.float())
    assert engine.version == "first"
    calls = engine.calls
    second = torch.randn(MASK.nnz).to(dtype)
    at = calls + data.draw(st.integers(1, calls))
    setattr(engine, data.draw(st.sampled_from(["cut_before", "cut_after"])), at)
    with suppress(Cut):  # one that loses the start alone mends itself
        sync.send(second, "second")
    assert engine.calls >= at
    whole = [w for w in (first, second) if torch.equal(engine.weights, w.float())]
    assert whole, "the weights are a mixture"
    # Another trainer may be the one that repeats it.
    again = data.draw(st.sampled_from([sync, TicketSync(engine, MASK, "0" * 64, piece_bytes=piece)]))
    again.send(second, "second")
    assert torch.equal(engine.weights, second.float())
    assert not engine.paused
    assert not engine.active
    assert engine.version == "second"


def test_a_cut_before_the_end_leaves_the_engine_paused_with_its_former_values() -> None:
    engine = StandIn()
    sync = TicketSync(engine, MASK, "0" * 64, piece_bytes=64)
    engine.cut_before = 5
    with pytest.raises(Cut):
        sync.send(torch.ones(MASK.nnz))
    assert engine.paused
    assert not engine.weights.any()


def data(values: torch.Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


def test_staging_refuses_what_does_not_fit() -> None:
    staging, four = Staging(10), data(torch.ones(4))
    staging.add("a", 0, "float32", four)
    with pytest.raises(ValueError, match="while 'a' was under way"):
        staging.add("b", 4, "float32", four)
    staging.add("a", 0, "float32", four)
    with pytest.raises(ValueError, match="missing"):
        staging.add("a", 5, "float32", four)
    staging.add("a", 0, "float32", four)
    with pytest.raises(ValueError, match="missing"):
        staging.add("a", 0, "float32", four)
    for _ in range(2):
        staging.add("a", 4 * _, "float32", four)
    with pytest.raises(ValueError, match="More than"):
        staging.add("a", 8, "float32", four)
    with pytest.raises(ValueError, match="whole number"):
        staging.add("a", 0, "float32", b"123")
    with pytest.raises(ValueError, match="not 'int8'"):
        staging.add("a", 0, "int8", b"123")
    staging.add("a", 0, "float32", four)
    with pytest.raises(ValueError, match="4 of 10 values arrived"):
        staging.whole()
    staging.add("a", 0, "bfloat16", data(torch.arange(10).to(torch.bfloat16)))
    assert torch.equal(staging.whole(), torch.arange(10).to(torch.bfloat16))


def test_values_that_are_not_the_masks_are_refused_before_the_engine_is_paused() -> None:
    engine = StandIn()
    sync = TicketSync(engine, MASK, "0" * 64)
    for wrong in (torch.ones(3), torch.ones(MASK.nnz, dtype=torch.float64)):
        with pytest.raises(ValueError, match="alues"):
            sync.send(wrong)
    assert engine.calls == 0


@pytest.mark.parametrize("kind", ["rule", "indices"])
def test_a_mask_is_the_same_on_the_worker(kind: str) -> None:
    mask = MASK
    if kind == "indices":
        chosen = {name: torch.arange(0, 5) * 2 for name in ("q.weight", "gate.weight")}
        with torch.device("meta"):
            model = torch.nn.ParameterDict(
                {
                    name.replace(".", "_"): torch.nn.Parameter(torch.empty(shape))
                    for name, shape in SHAPES.items()
                }
            )
        mask = Mask.from_indices(model, {name.replace(".", "_"): flat for name, flat in chosen.items()})
    made = described(**json.loads(json.dumps(describe(mask))))
    assert made.names == mask.names
    assert made.rule == mask.rule
    for name in mask.names:
        assert torch.equal(made.indices(name), mask.indices(name))


def test_a_mask_with_other_counts_is_refused() -> None:
    told = describe(MASK)
    told["tensors"][0][2] += 1
    with pytest.raises(ValueError, match="other counts"):
        described(**told)
