"""Ticket files changed at random: each is refused in a sentence, or is a ticket whose parts fit. Nothing else happens.

    python tests/endurance/mutated_tickets.py --count 10000

Half of them are damaged: bytes flipped, cut, added, turned round, taken from another ticket. These must be refused.
The others are forged by somebody who knows the format: the header's text, its JSON or the stored positions are changed,
and lengths and checksum are right again. These may load; then applying them is refused or is undone bit for bit, and
`inspect` and the hub's card show them or say what is wrong. Each takes less than two seconds of one core, and 50 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import random
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ticket"))
from ticket_models import Toy, bits, make_model, make_ticket, same_bits

from multiticket.cli import main as command
from multiticket.mask import Mask, MaskRule
from multiticket.ticket import Ticket, card, compose
from multiticket.ticket.hub import shareable

SECONDS, BYTES = 2.0, 50e6
NO_CHECKSUM = b"0" * 64
SCORES = {"pass@1": 0.5, "interval": [0.4, 0.6], "greedy": 0.6, "greedy_interval": [0.5, 0.7], "n": 64}
PROVENANCE = {
    "task": "arithmetic", "model": "tiny-qwen2", "arm": "ticket", "density": 0.01, "steps": 50, "seed": 0,
    "learning_rate": 0.01, "scores": {"before": SCORES, "after": SCORES}, "versions": {"torch": "2.13.0"},
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**62, 2**64, -(2**63), 0.5, 1e308, -0.0, "", "0", "a" * 1000,
    "\x1b[31m", "\ud800", "../../x", "BF16", "F32", "random", [], [1], [[]], {}, {"a": 1}, [0] * 20, "0" * 64,
]  # fmt: skip


def tickets(model: Toy) -> list[Ticket]:
    """One of every kind that a file can hold."""
    rules = [
        MaskRule(method, 0.08, seed=5)
        for method in ("random", "numpy", "columns", "rows", "blocks", "layers")
    ]
    masks = [Mask.from_rule(model, rule) for rule in rules]
    masks.append(Mask.from_indices(model, {"turned": torch.tensor([0, 17, 150, 299])}))
    found = [make_ticket(model, mask, seed) for seed, mask in enumerate(masks)]
    found.append(make_ticket(model, masks[0], dtype=torch.float32))
    found.append(compose([make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in range(2)]))
    return [Ticket.from_sections(one.sections, {**one.provenance, **PROVENANCE}) for one in found]


# Damage


def flip(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def cut(data: bytearray, rng: random.Random, other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 8, 20, len(data)])]


def add(data: bytearray, rng: random.Random, other: bytes) -> None:
    at = rng.choice([rng.randrange(len(data)), len(data)])
    data[at:at] = rng.randbytes(rng.randrange(1, 30))


def turn_round(data: bytearray, rng: random.Random, other: bytes) -> None:
    at = rng.randrange(len(data))
    end = at + rng.randrange(2, 50)
    data[at:end] = data[at:end][::-1]


def say_another_length(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[:8] = struct.pack("<Q", rng.getrandbits(64) >> rng.randrange(64))


def take_from_another(data: bytearray, rng: random.Random, other: bytes) -> None:
    at, size = rng.randrange(len(other)), rng.randrange(1, 400)
    data[at : at + size] = other[at : at + size]


DAMAGE = [flip, put, cut, add, turn_round, say_another_length, take_from_another]


# Forgery


def split(data: bytes) -> tuple[bytes, bytes]:
    """A good file's header and body."""
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length].rstrip(), data[8 + length :]


def signed(head: bytes, body: bytes, checksum: bytes) -> bytes:
    """The file with this header and body, its length and its checksum right."""
    whole = struct.pack("<Q", len(head)) + head + body
    digest = hashlib.sha256(whole.replace(checksum, NO_CHECKSUM)).hexdigest().encode()
    return whole.replace(checksum, digest)


def other_text(head: bytes, body: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    data = bytearray(head)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = bytes([rng.choice(b'0123456789-.eE",:[]{}\\ntrufalsx\x00\xff')])
    return bytes(data), body


def other_json(head: bytes, body: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Values anywhere in the header, in its sections and in its provenance replaced, doubled, taken away."""
    header = json.loads(head)
    inner = {name: json.loads(header["__metadata__"][name]) for name in ("sections", "provenance")}
    for _ in range(rng.randrange(1, 3)):
        _change(rng.choice([header, inner["sections"], inner["sections"], inner["provenance"]]), rng)
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"].update({name: json.dumps(value) for name, value in inner.items()})
    return json.dumps(header).encode(), body


def other_body(head: bytes, body: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Other values and, where they are stored, other positions."""
    data = bytearray(body)
    for _ in range(rng.randrange(1, 10)):
        data[-rng.randrange(1, min(len(data), 40))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return head, bytes(data)


def _change(value: Any, rng: random.Random) -> None:
    """One thing at a random depth of a list or dictionary."""
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not places:
        return
    place = rng.choice(places)
    if isinstance(value[place], dict | list) and value[place] and rng.random() < 0.8:
        _change(value[place], rng)
        return
    what = rng.randrange(4)
    if what == 0:
        del value[place]
    elif what == 1 and isinstance(value, list):
        value.append(copy.deepcopy(value[place]))
    elif what == 2 and isinstance(value[place], int) and not isinstance(value[place], bool):
        value[place] += rng.choice([-1, 1, 7])
    else:
        value[place] = rng.choice(ODD)


FORGERY = [other_text, other_json, other_json, other_body]


# What must hold


def judge(path: Path, model: Toy, before: dict[str, torch.Tensor], forged: bool, same: bool) -> str:
    """What became of a file: refused, the same, or a ticket that was applied and shown, or refused by the model."""
    try:
        loaded = Ticket.load(path)
    except ValueError as error:
        _is_a_sentence(error)
        assert not same, "a good file was refused"
        return "refused when read"
    assert same or forged, "a damaged file was read"
    if same:
        return "not changed"
    for section in loaded.sections:
        assert {name: section.mask.count(name) for name in section.mask.names} == {
            name: len(values) for name, values in section.values.items()
        }
    _show(path, loaded)
    try:
        with loaded.applied(model):
            pass
        verdict = "applied, and undone"
    except ValueError as error:
        _is_a_sentence(error)
        verdict = "refused by the base"
    assert same_bits(bits(model), before), "the model is not what it was"
    return verdict


def _show(path: Path, loaded: Ticket) -> None:
    said, code = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            command(["inspect", str(path)])
    except SystemExit as end:
        code = end.code
    assert code in (0, 2), said.getvalue()
    assert "\x1b[31m" not in said.getvalue(), "the terminal was written to"
    card.describe(loaded, "me/x", "tiny-qwen2", False)
    card.results(loaded)
    card.metadata(loaded, "me/x", "tiny-qwen2", False, None)
    shareable(loaded.provenance, "tiny-qwen2")


def _is_a_sentence(error: Exception) -> None:
    text = str(error)
    assert text.strip(), "no reason was given"
    assert "\n" not in text, text
    assert len(text) < 1500, text


def mutated(good: bytes, other: bytes, kind: Callable[..., Any], rng: random.Random) -> bytes:
    if kind in DAMAGE:
        data = bytearray(good)
        kind(data, rng, other)
        return bytes(data)
    head, body = split(good)
    checksum = json.loads(head)["__metadata__"]["checksum"].encode()
    return signed(*kind(head, body, rng), checksum)


def main(total: int, seed: int) -> Counter[str]:
    torch.set_num_threads(1)
    model = make_model()
    before, verdicts = bits(model), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        good = []
        for one in tickets(model):
            one.save(path)
            good.append(path.read_bytes())
            _show(path, one)  # what is imported by that, and by applying, is no file's fault
            one.apply(model).revert()
        tracemalloc.start()
        slowest = 0.0
        for number in range(total):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choice(FORGERY if number % 2 else DAMAGE)
            whole, other = rng.choice(good), rng.choice(good)
            data = mutated(whole, other, kind, rng)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            began, held = time.process_time(), tracemalloc.get_traced_memory()[0]
            try:
                verdict = judge(path, model, before, kind in FORGERY, data in good)
                taken = time.process_time() - began
                assert taken < SECONDS, f"it took {taken:.1f} s"
                grown = tracemalloc.get_traced_memory()[1] - held
                assert grown < BYTES, f"it took {grown / 1e6:.0f} MB"
            except Exception as error:
                raise AssertionError(
                    f"number {number} of seed {seed}, by {kind.__name__}: {error!r}"
                ) from error
            slowest = max(slowest, taken)
            verdicts[f"{'forged' if kind in FORGERY else 'damaged'}, {verdict}"] += 1
        tracemalloc.stop()
    print(f"{total} mutated tickets, none of them taken for what it is not; the slowest took {slowest:.2f} s")
    for verdict, number in sorted(verdicts.items()):
        print(f"{number:6} {verdict}")
    return verdicts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    main(asked.count, asked.seed)
