"""Ticket files: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.mask import Mask, MaskRule, union
from multiticket.ticket import Ticket, compose, delta


def assert_same(one: Ticket, other: Ticket) -> None:
    assert one.provenance == other.provenance
    assert len(one.sections) == len(other.sections)
    for a, b in zip(one.sections, other.sections, strict=True):
        assert a.mask.rule == b.mask.rule
        assert a.mask.shapes == b.mask.shapes
        assert a.mask.names == b.mask.names
        assert a.fingerprint == b.fingerprint
        for name in a.mask.names:
            assert torch.equal(a.mask.indices(name), b.mask.indices(name))
            assert a.values[name].dtype == b.values[name].dtype
            assert torch.equal(a.values[name].view(torch.uint8), b.values[name].view(torch.uint8))


def test_save_and_load_is_the_identity(any_ticket: Ticket, tmp_path: Path) -> None:
    any_ticket.save(tmp_path / "t.safetensors")
    loaded = Ticket.load(tmp_path / "t.safetensors")
    assert_same(any_ticket, loaded)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_dtype_keeps_its_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = {"a": (33,), "b": (7, 11)}
    mask = Mask.from_shapes(shapes, MaskRule("random", 0.5))
    values = {
        name: torch.randint(0, 256, (mask.count(name) * dtype.itemsize,), dtype=torch.uint8).view(dtype)
        for name in shapes
    }
    ticket = Ticket(mask, values, "0" * 64)
    ticket.save(tmp_path / "t")
    assert_same(ticket, Ticket.load(tmp_path / "t"))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("ab.é", min_size=1, max_size=6), st.lists(st.integers(1, 30), max_size=3), min_size=1
    ),
    st.sampled_from(["random", "numpy", "rows", "columns", "blocks", "indices"]),
    st.floats(0.05, 1.0),
    st.integers(0, 2**64 - 1),
)
def test_save_and_load_is_the_identity_for_any_shapes_and_rule(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, list[int]],
    method: str,
    density: float,
    seed: int,
) -> None:
    table = {name: tuple(shape) for name, shape in shapes.items()}
    try:
        mask = Mask.from_shapes(table, MaskRule("random" if method == "indices" else method, density, seed))
    except ValueError as error:
        assert "would be empty" in str(error)  # noqa: PT017
        return
    if method == "indices":
        mask = union(mask)
    generator = torch.Generator().manual_seed(seed % 2**63)
    values = {name: torch.randn(mask.count(name), generator=generator).half() for name in mask.names}
    ticket = Ticket(mask, values, "0123456789abcdef" * 4, {"seed": seed})
    path = tmp_path_factory.mktemp("any") / "t"
    ticket.save(path)
    assert_same(ticket, Ticket.load(path))


def test_mixed_dtypes(tmp_path: Path) -> None:
    mask = Mask.from_shapes({"a": (33,), "b": (7, 11), "c": (20,)}, MaskRule("random", 0.5))
    kinds = {"a": torch.bfloat16, "b": torch.float32, "c": torch.bfloat16}
    ticket = Ticket(mask, {n: torch.randn(mask.count(n)).to(kinds[n]) for n in kinds}, "f" * 64)
    ticket.save(tmp_path / "t")
    assert_same(ticket, Ticket.load(tmp_path / "t"))
    assert ticket.dtypes == (torch.float32, torch.bfloat16)


def test_is_a_safetensors_file_that_the_library_reads(ticket: Ticket, tmp_path: Path) -> None:
    from safetensors import safe_open

    ticket.save(tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert list(file.keys()) == ["0.values.BF16"]
        assert file.metadata()["format"] == "multiticket.ticket"
        values = torch.cat([ticket.sections[0].values[name] for name in ticket.mask.names])
        assert torch.equal(file.get_tensor("0.values.BF16").view(torch.int16), values.view(torch.int16))


def test_another_program_can_read_it_from_the_documentation_alone(ticket: Ticket, tmp_path: Path) -> None:
    """The steps of docs/ticket-format.md with the standard library."""
    path = tmp_path / "t.safetensors"
    ticket.save(path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    checksum = metadata["checksum"].encode()
    assert data.count(checksum) == 1
    assert hashlib.sha256(data.replace(checksum, b"0" * 64)).hexdigest() == checksum.decode()
    section = json.loads(metadata["sections"])[0]
    begin, end = header["0.values.BF16"]["data_offsets"]
    words = np.frombuffer(data[8 + length + begin : 8 + length + end], dtype="<u2")
    at = 0
    for name, shape, count, dtype in section["tensors"]:
        assert list(ticket.mask.shape(name)) == shape
        assert count == ticket.mask.count(name)
        if count:
            assert dtype == "BF16"
            expected = ticket.sections[0].values[name].view(torch.int16).numpy().view("<u2")
            assert (words[at : at + count] == expected).all()
        at += count
    assert at == len(words)


def test_size_at_qwen_0_5b(tmp_path: Path) -> None:
    """At most 2.02 bytes a value in bf16, with the names and shapes of a whole model."""
    layers = {
        f"model.layers.{i}.{name}": shape
        for i in range(24)
        for name, shape in {
            "self_attn.q_proj.weight": (896, 896), "self_attn.q_proj.bias": (896,),
            "self_attn.k_proj.weight": (128, 896), "self_attn.k_proj.bias": (128,),
            "self_attn.v_proj.weight": (128, 896), "self_attn.v_proj.bias": (128,),
            "self_attn.o_proj.weight": (896, 896),
            "mlp.gate_proj.weight": (4864, 896), "mlp.up_proj.weight": (4864, 896), "mlp.down_proj.weight": (896, 4864),
            "input_layernorm.weight": (896,), "post_attention_layernorm.weight": (896,),
        }.items()
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (151936, 896), **layers, "model.norm.weight": (896,)}
    mask = Mask.from_shapes(shapes, MaskRule("random", 0.01))
    assert mask.nnz == 4_940_162
    ticket = Ticket(mask, {n: torch.zeros(mask.count(n), dtype=torch.bfloat16) for n in mask.names}, "0" * 64)
    ticket.save(tmp_path / "t")
    assert (tmp_path / "t").stat().st_size <= 2.02 * mask.nnz
    assert Ticket.load(tmp_path / "t").nnz == mask.nnz


@given(st.lists(st.sets(st.integers(0, 2**40 - 1), min_size=1, max_size=30), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_positions_survive_delta_coding(sets: list[set[int]]) -> None:
    flats = [np.array(sorted(each), dtype=np.int64) for each in sets]
    data = np.concatenate([delta.encode(flat) for flat in flats])
    decoded = delta.decode(data, [len(flat) for flat in flats])
    assert all((a == b).all() for a, b in zip(flats, decoded, strict=True))


def test_stored_positions_take_little_more_than_a_byte() -> None:
    flat = Mask.from_shapes({"w": (1000, 1000)}, MaskRule("random", 0.01)).indices("w").numpy()
    assert len(delta.encode(flat)) < 1.35 * len(flat)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0x80], "another number"),
        ([0x00, 0x00], "another number"),
        ([], "another number"),
        ([0x80, 0x00], "shortest"),
        ([0xFF] * 6 + [0x01], "too large"),
    ],
)
def test_bad_position_bytes_are_refused(data: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delta.decode(np.array(data, dtype=np.uint8), [1])


def test_saving_replaces_whole_files_alone(
    ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.safetensors"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ticket.save(path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    monkeypatch.undo()
    ticket.save(path)
    assert_same(ticket, Ticket.load(path))
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(fresh.stat().st_mode)


def test_what_is_not_a_ticket_is_refused_in_a_sentence(tmp_path: Path, ticket: Ticket) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "plain")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello, this is no ticket at all")
    with (tmp_path / "huge header").open("wb") as file:
        file.write(struct.pack("<Q", 2**62) + b"{}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    ticket.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-1])
    ticket.save(tmp_path / "longer")
    (tmp_path / "longer").write_bytes((tmp_path / "longer").read_bytes() + b"x")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"cannot be used: [^\n]+") as caught:
            Ticket.load(path)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Ticket.load(tmp_path / "missing")


@pytest.mark.parametrize("length", [0, 7, 8, 9, 100, 500])
def test_every_truncation_is_refused(ticket: Ticket, tmp_path: Path, length: int) -> None:
    ticket.save(tmp_path / "t")
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(data[:length])
    with pytest.raises(ValueError, match="cannot be used"):
        Ticket.load(tmp_path / "t")


def test_a_ticket_needs_parts_that_fit(model: torch.nn.Module) -> None:
    mask = Mask.random(model, 0.1)
    values = {name: torch.zeros(mask.count(name)) for name in mask.names}
    first = mask.names[0]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Ticket(mask, values, "abc")
    with pytest.raises(ValueError, match="values for exactly the mask's tensors"):
        Ticket(mask, {name: v for name, v in values.items() if name != first}, "0" * 64)
    with pytest.raises(ValueError, match="masked positions, and values of shape"):
        Ticket(mask, {**values, first: torch.zeros(1)}, "0" * 64)
    with pytest.raises(ValueError, match=r"cannot hold torch\.int64 values"):
        Ticket(mask, {**values, first: values[first].long()}, "0" * 64)
    with pytest.raises(ValueError, match="plain JSON"):
        Ticket(mask, values, "0" * 64, {"score": float("nan")})


def test_values_are_the_tickets_own(model: torch.nn.Module) -> None:
    mask = Mask.random(model, 0.1)
    values = {name: torch.zeros(mask.count(name)) for name in mask.names}
    ticket = Ticket(mask, values, "0" * 64)
    values[mask.names[0]].fill_(7)
    assert float(ticket.sections[0].values[mask.names[0]].sum()) == 0


# --- a file whose author knows how to compute the checksum ---------------------------------------------------------


def forge(path: Path, change: object) -> None:
    """Change the parsed sections or header of a proper file, and give it a right checksum and length again."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    sections = json.loads(header["__metadata__"]["sections"])
    body = change(header, sections) or data[8 + length :]  # type: ignore[operator]
    header["__metadata__"]["sections"] = json.dumps(sections)
    header["__metadata__"]["checksum"] = "0" * 64
    head = json.dumps(header).encode()
    whole = struct.pack("<Q", len(head)) + head + body
    digest = hashlib.sha256(whole).hexdigest()
    path.write_bytes(whole.replace(b"0" * 64, digest.encode(), 1))


def set_rule(field: str, value: object) -> object:
    return lambda header, sections: sections[0]["rule"].update({field: value})


def set_entry(index: int, value: object) -> object:
    return lambda header, sections: sections[0]["tensors"][0].__setitem__(index, value)


HOSTILE = {
    "huge shape": set_entry(1, [2**39]),
    "shape beyond the limit": set_entry(1, [2**40]),
    "many dimensions": set_entry(1, [2] * 17),
    "negative shape": set_entry(1, [-40, -12]),
    "float shape": set_entry(1, [40.0, 12]),
    "bool count": set_entry(2, True),
    "more values than entries": set_entry(2, 10**6),
    "negative count": set_entry(2, -1),
    "no count": set_entry(2, 0),
    "unknown dtype": set_entry(3, "I64"),
    "dtype list": set_entry(3, ["BF16"]),
    "other dtype": set_entry(3, "F32"),
    "escape codes in a name": set_entry(0, "\x1b[31mred"),
    "name is a number": set_entry(0, 7),
    "repeated name": lambda h, s: s[0]["tensors"].append(s[0]["tensors"][0]),
    "another density": set_rule("density", 0.2),
    "density zero": set_rule("density", 0),
    "density text": set_rule("density", "0.1"),
    "no density": set_rule("density", None),
    "tiny density": set_rule("density", 5e-324),
    "unknown method": set_rule("method", "psychic"),
    "columns of no such size": set_rule("options", {"size": 4}),
    "future version": set_rule("version", 2),
    "huge seed": set_rule("seed", 2**64),
    "scope that covers nothing": set_rule("scope", "nothing"),
    "scope that covers less": set_rule("scope", "layers.*"),
    "blocks of one": lambda h, s: s[0]["rule"].update(method="blocks", options={"size": 1})
    or s[0]["tensors"].append(["big", [2**39], 0, None]),
    "rule is a list": lambda h, s: s[0].update(rule=[]),
    "no sections": lambda h, s: s.clear(),
    "section twice": lambda h, s: s.append(s[0]),
    "section of another kind": lambda h, s: s.__setitem__(0, 3),
    "fingerprint text": lambda h, s: s[0].update(fingerprint="no"),
    "extra field": lambda h, s: s[0].update(extra=1),
    "provenance list": lambda h, s: h["__metadata__"].update(provenance="[]"),
    "provenance broken": lambda h, s: h["__metadata__"].update(provenance="{"),
    "provenance deep": lambda h, s: h["__metadata__"].update(provenance="[" * 50_000),
    "provenance NaN": lambda h, s: h["__metadata__"].update(provenance='{"a":NaN}'),
    "metadata number": lambda h, s: h["__metadata__"].update(version=1),
    "other format": lambda h, s: h["__metadata__"].update(format="pt"),
    "extra tensor": lambda h, s: h.update(x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "offsets beyond the end": lambda h, s: h["0.values.BF16"].update(shape=[2**40], data_offsets=[0, 2**41]),
    "offsets overlap": lambda h, s: h.update(x={"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}),
    "offsets backwards": lambda h, s: h["0.values.BF16"].update(data_offsets=[4, 0]),
    "two-dimensional values": lambda h, s: h["0.values.BF16"].update(shape=[1, 2]),
    "no values": lambda h, s: h.pop("0.values.BF16") and None,
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_forged_headers_are_refused_without_a_large_allocation(
    what: str, ticket: Ticket, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    ticket.save(path)
    forge(path, lambda header, sections: None)
    assert_same(ticket, Ticket.load(path))
    forge(path, HOSTILE[what])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"cannot be used: [^\n]+"):
        Ticket.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_mutated_headers_with_a_right_checksum(any_ticket: Ticket, tmp_path: Path) -> None:
    """Nothing but a ValueError, whatever the header says, and a ticket that loads has consistent parts."""
    path = tmp_path / "t"
    any_ticket.save(path)
    good = path.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    head = good[8 : 8 + length].rstrip()
    checksum = json.loads(head)["__metadata__"]["checksum"].encode()
    random = np.random.default_rng(1)
    characters = b'0123456789-.eE",:[]{}\\ntrufalsx\x00\xff'
    for _ in range(400):
        data = bytearray(head)
        for _ in range(int(random.integers(1, 3))):
            at = int(random.integers(len(data)))
            data[at : at + int(random.integers(2))] = bytes(
                [characters[int(random.integers(len(characters)))]]
            )
        whole = struct.pack("<Q", len(data)) + bytes(data) + good[8 + length :]
        digest = hashlib.sha256(whole.replace(checksum, b"0" * 64)).hexdigest()
        path.write_bytes(whole.replace(checksum, digest.encode()))
        try:
            loaded = Ticket.load(path)
        except ValueError:
            continue
        for section in loaded.sections:
            assert {name: section.mask.count(name) for name in section.mask.names} == {
                name: len(values) for name, values in section.values.items()
            }


def test_forged_positions_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "t"
    mask = Mask.from_indices(model, {"turned": torch.tensor([5, 9])})
    Ticket(mask, {"turned": torch.zeros(2)}, "0" * 64).save(path)
    assert Ticket.load(path).mask.indices("turned").tolist() == [5, 9]

    def more(header: dict, sections: list) -> bytes:
        header["0.positions"].update(shape=[9], data_offsets=[8, 17])
        return struct.pack("<2f", 0, 0) + bytes([5] + [0xFF] * 7 + [1])

    forge(path, lambda header, sections: struct.pack("<2f", 0, 0) + bytes([5, 4]))
    assert Ticket.load(path).mask.indices("turned").tolist() == [5, 10]
    outside_of_15_by_20 = bytes([5, 0xFF, 0x7F])

    def beyond(header: dict, sections: list) -> bytes:
        header["0.positions"].update(shape=[3], data_offsets=[8, 11])
        return struct.pack("<2f", 0, 0) + outside_of_15_by_20

    good = path.read_bytes()
    for change, message in ((beyond, "outside 'turned'"), (more, "too large")):
        path.write_bytes(good)
        forge(path, change)
        with pytest.raises(ValueError, match=message):
            Ticket.load(path)


def test_repeated_json_keys_are_refused(ticket: Ticket, tmp_path: Path) -> None:
    path = tmp_path / "t"
    ticket.save(path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    head = data[8 : 8 + length].rstrip().replace(b'"version":"1"', b'"version":"1","version":"1"')
    path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])
    with pytest.raises(ValueError, match="not valid JSON"):
        Ticket.load(path)


def test_three_thousand_mutated_files(model: torch.nn.Module, tmp_path: Path) -> None:
    """Every one is refused with a sentence, and none crashes, hangs, allocates much or loads as another ticket."""
    small = Mask.from_rule(model, MaskRule("columns", 0.02, scope="layers.0.*"))
    picked = Mask.from_indices(model, {"turned": torch.tensor([0, 17, 150, 299])})
    ticket = compose(
        [
            Ticket(mask, {n: torch.randn(mask.count(n)) for n in mask.names}, "ab" * 32, {"arm": "ticket"})
            for mask in (small, picked)
        ]
    )
    path = tmp_path / "t"
    ticket.save(path)
    good = path.read_bytes()
    random = np.random.default_rng(0)
    tracemalloc.start()
    for turn in range(3000):
        data = bytearray(good)
        kind = turn % 6
        at = int(random.integers(len(data)))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            del data[at : at + int(random.integers(1, 20))]
        elif kind == 3:
            data[at:at] = random.bytes(int(random.integers(1, 20)))
        elif kind == 4:
            end = min(len(data), at + int(random.integers(2, 50)))
            data[at:end] = data[at:end][::-1]
        else:
            data[:8] = struct.pack("<Q", int(random.integers(0, 2**63)) >> int(random.integers(63)))
        path.write_bytes(data)
        if bytes(data) == good:
            assert_same(ticket, Ticket.load(path))
            continue
        with pytest.raises(ValueError, match=r"cannot be used: [^\n]+"):
            Ticket.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_every_single_flipped_bit_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    mask = Mask.from_indices(model, {"turned": torch.tensor([3])})
    path = tmp_path / "t"
    Ticket(mask, {"turned": torch.ones(1)}, "ab" * 32).save(path)
    good = path.read_bytes()
    step = math.ceil(len(good) * 8 / 2500)
    for bit in range(0, len(good) * 8, step):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be used"):
            Ticket.load(path)
