"""The permutation: pinned, equal to its plain twin, a bijection."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiticket.mask import feistel, random
from multiticket.mask.reference import position

# seed, name, shape, first word of the key, positions at the first places, position at the last place.
# Version 1 of the algorithm. These never change: every ticket ever written depends on them.
GOLDEN = [
    (0, "w", (1,), 0x60C5B588, [0], 0),
    (0, "w", (2,), 0x56B28DCA, [0, 1], 1),
    (0, "w", (7,), 0x6B9F26CE, [6, 3, 5, 0, 2], 1),
    (1, "model.norm.weight", (896,), 0x8C573B20, [799, 405, 275, 541, 804], 291),
    (0, "w", (256, 256), 0x9CC8B0CD, [54303, 33947, 61688, 42055, 14465], 64549),
    (0, "w", (65537,), 0x8D3D64C7, [13839, 62446, 29365, 857, 52199], 61090),
    (
        0,
        "model.layers.0.mlp.up_proj.weight",
        (4864, 896),
        0x43A1D395,
        [2444110, 3208460, 1824854, 4193132, 2190984],
        4257501,
    ),
    (
        160,
        "model.embed_tokens.weight",
        (151936, 896),
        0x59F3E232,
        [40674829, 93251698, 58557608, 22062744, 75268480],
        114164509,
    ),
    (
        18446744073709551615,
        "experts",
        (128, 768, 2048),
        0x12028653,
        [10120782, 62577183, 77183791, 106183665, 72516854],
        200406173,
    ),
    (
        3,
        "huge",
        (1099511627775,),
        0x4647E79D,
        [753489084769, 249070853525, 680375157004, 234849694407, 364444663745],
        844106095881,
    ),
    (3, "é", (300, 300), 0x4E42BAFA, [27926, 10088, 22656, 3106, 56998], 22359),
]


@pytest.mark.parametrize(("seed", "name", "shape", "word", "first", "last"), GOLDEN)
def test_golden_vectors_of_version_1(
    seed: int, name: str, shape: tuple[int, ...], word: int, first: list[int], last: int
) -> None:
    numel, key = math.prod(shape), random.tensor_key(seed, name, shape)
    assert key[0] == word
    assert random.permuted(numel, 0, len(first), key).tolist() == first
    assert random.permuted(numel, numel - 1, numel, key).tolist() == [last]
    if numel <= 1000 or numel > random.SORTED_UP_TO:
        assert [position(place, numel, key) for place in range(len(first))] == first


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.integers(1, 300), st.integers(2**16 + 1, 2**17), st.integers(2**17, 2**40 - 1)),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_equals_the_plain_reference(numel: int, seed: int, data: st.DataObject) -> None:
    key = random.tensor_key(seed, "w", (numel,))
    start = data.draw(st.integers(0, numel - 1))
    stop = min(numel, start + 5)
    expected = [position(place, numel, key) for place in range(start, stop)]
    assert random.permuted(numel, start, stop, key).tolist() == expected
    assert random.positions(numel, start, stop, key).tolist() == sorted(expected)


@pytest.mark.parametrize("base", [257, 1000, 65_537, 2**20])
def test_the_torch_path_of_other_devices_equals_the_numpy_path(base: int) -> None:
    key = random.tensor_key(9, "w", (base, base))
    numbers = torch.randint(0, base * base, (5000,), generator=torch.Generator().manual_seed(0))
    numbers[:2] = torch.tensor([0, base * base - 1])
    assert torch.equal(
        feistel.on_device(numbers, base, key), torch.from_numpy(feistel.on_cpu(numbers.numpy(), base, key))
    )


@pytest.mark.parametrize("numel", [1, 2, 3, 255, 896, 65535, 65536, 65537, 66049, 66050, 100003])
def test_is_a_bijection(numel: int) -> None:
    everything = random.positions(numel, 0, numel, random.tensor_key(7, "w", (numel,)))
    assert torch.equal(everything, torch.arange(numel))


def test_chunks_do_not_show() -> None:
    numel, key = 10**7, random.tensor_key(1, "w", (10**7,))
    whole = random.permuted(numel, 0, 100_000, key)
    pieces = [random.permuted(numel, start, start + 25_000, key) for start in range(0, 100_000, 25_000)]
    assert torch.equal(whole, torch.cat(pieces))


def test_key_tells_apart_seed_name_shape_and_method() -> None:
    keys = {
        random.tensor_key(0, "w", (4, 8)),
        random.tensor_key(1, "w", (4, 8)),
        random.tensor_key(0, "v", (4, 8)),
        random.tensor_key(0, "w", (8, 4)),
        random.tensor_key(0, "w", (32,)),
        random.tensor_key(0, "w", (4, 8), "columns"),
    }
    assert len(keys) == 6


def test_too_large_a_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        random.permuted(2**40, 0, 1, random.tensor_key(0, "w", (2**40,)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("numel", [7, 896, 65536, 65537, 136_134_656, 2**40 - 1])
def test_gpu_gives_the_same_positions(numel: int) -> None:
    key = random.tensor_key(3, "w", (numel,))
    stop = min(numel, 100_000)
    on_gpu = random.positions(numel, 0, stop, key, "cuda")
    assert torch.equal(on_gpu.cpu(), random.positions(numel, 0, stop, key))
