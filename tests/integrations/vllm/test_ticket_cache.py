"""Many tickets of one base: each swap equals the merged checkpoint, the base comes back bit for bit, on any ranks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_models import SHAPES, checkpoint, equal, fingerprint_of, loaded, state, values_of, with_values

from multiticket.integrations.vllm.ranks import ManyRanks, OneRank
from multiticket.integrations.vllm.ticket_cache import TicketCache
from multiticket.mask import Mask, MaskRule
from multiticket.ticket import Ticket, compose

BASE = checkpoint(torch.bfloat16)


def make(seed: int, density: float = 0.3, base: dict[str, torch.Tensor] = BASE) -> Ticket:
    mask = Mask.from_shapes(SHAPES, MaskRule("random", density, seed))
    values = values_of(checkpoint(torch.bfloat16, seed=seed + 50), mask)
    parts = dict(zip(mask.names, values.split([mask.count(name) for name in mask.names]), strict=True))
    return Ticket(mask, parts, fingerprint_of(base, mask))


def merged(ticket: Ticket) -> dict[str, torch.Tensor]:
    result = BASE
    for section in ticket.sections:
        values = torch.cat([section.values[name] for name in section.mask.names])
        result = with_values(result, section.mask, values)
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tickets")
    tickets = {"one": make(1), "two": make(2), "one again": make(1), "full": make(3, 1.0)}
    tickets["both"] = compose([make(1, 0.01), make(4, 0.01)])
    for name, ticket in tickets.items():
        ticket.save(folder / name)
    return {name: folder / name for name in tickets}


def cache(dtype: torch.dtype = torch.bfloat16, reason: str | None = None) -> TicketCache:
    return TicketCache(loaded(BASE, dtype=dtype), OneRank(), dtype, reason)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.sampled_from(["one", "two", "one again", "full", "both", None]), max_size=8),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_every_swap_equals_the_merged_checkpoint(
    files: dict[str, Path], order: list[str | None], dtype
) -> None:  # type: ignore[no-untyped-def]
    held = cache(dtype)
    for name, path in files.items():
        held.load(name, str(path))
    base = state(held._model)
    assert equal(base, state(loaded(BASE, dtype=dtype)))
    for name in order:
        held.use(name)
        assert held.serving == name
        expected = BASE if name is None else merged(Ticket.load(files[name]))
        assert equal(state(held._model), state(loaded(expected, dtype=dtype)))
    held.use(None)
    assert equal(state(held._model), base)


def test_tickets_of_one_mask_share_its_places(files: dict[str, Path]) -> None:
    held = cache()
    held.load("one", str(files["one"]))
    held.load("again", str(files["one again"]))
    one, again = (held._tickets[name].sections[0][0] for name in ("one", "again"))
    assert one is again


def test_what_is_wrong_is_refused_and_the_others_stay(files: dict[str, Path], tmp_path: Path) -> None:
    held = cache()
    held.load("one", str(files["one"]))
    broken = tmp_path / "broken"
    broken.write_bytes(files["two"].read_bytes()[:-3])
    make(2, base=checkpoint(torch.bfloat16, seed=9)).save(tmp_path / "elsewhere")
    for path, words in [
        (broken, "truncated"),
        (tmp_path / "elsewhere", "another base"),
        (tmp_path / "none", "No such file"),
    ]:
        with pytest.raises(ValueError, match=words):
            held.load("two", str(path))
    with pytest.raises(ValueError, match="already"):
        held.load("one", str(files["two"]))
    with pytest.raises(ValueError, match="no ticket 'two'"):
        held.use("two")
    held.use("one")
    with pytest.raises(ValueError, match="in the weights"):
        held.drop("one")
    with pytest.raises(ValueError, match="in the weights"):
        held.load("two", str(files["two"]))
    assert list(held.list()) == ["one"]
    assert equal(state(held._model), state(loaded(merged(make(1)), dtype=torch.bfloat16)))
    held.use(None)
    held.drop("one")
    assert held.list() == {}
    with pytest.raises(ValueError, match="quantised"):
        cache(reason="its weights are quantised").load("one", str(files["one"]))


def test_a_swap_that_was_cut_is_mended_by_the_next(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = cache()
    for name in ("one", "two"):
        held.load(name, str(files[name]))
    base = state(held._model)
    places = held._tickets["two"].sections[0][0].places
    write = places.write

    def half(values: torch.Tensor) -> None:
        write(values)
        raise RuntimeError("the device is lost")

    held.use("one")
    with monkeypatch.context() as patch:
        patch.setattr(places, "write", half)
        with pytest.raises(RuntimeError):
            held.use("two")
    assert held.serving is None
    held.use(None)
    assert equal(state(held._model), base)


def worker(rank: int, port: int, folder: str) -> None:
    """Two ranks with half the model each: one may refuse, and then both do."""
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    assert group is not None
    held = TicketCache(loaded(BASE, rank, 2, torch.bfloat16), ManyRanks(group), torch.bfloat16)
    base = state(held._model)
    for name in ("one", "both"):
        held.load(name, str(Path(folder) / name))
    missing = Path(folder) / ("one" if rank == 0 else "nothing")
    with pytest.raises(ValueError, match="No such file"):
        held.load("missing", str(missing))
    for name in ("both", "one"):
        held.use(name)
        expected = merged(Ticket.load(Path(folder) / name))
        assert equal(state(held._model), state(loaded(expected, rank, 2, torch.bfloat16)))
    held.use(None)
    assert equal(state(held._model), base)
    torch.distributed.destroy_process_group()


def test_two_ranks_load_swap_and_refuse_together(files: dict[str, Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(files["one"].parent)), nprocs=2)
