from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from multiticket.cli import main
from multiticket.cli.plan import binary_size, parse_memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model's folder with its configuration alone."""
    from transformers import Qwen2Config

    place = tmp_path_factory.mktemp("model")
    Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ).save_pretrained(place)
    return str(place)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments])
    return int(end.value.code or 0)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_every_component_and_its_sums(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(
        capsys, folder, "--density", "0.1", "--tokens", "16", "--batch", "2", "--gpu-memory", "24GiB"
    )
    assert [arm["arm"] for arm in result["arms"]] == ["full", "ticket", "lora", "shira"]
    assert (result["dtype"], result["tokens"], result["completions"]) == ("bfloat16", 16, 2)
    for arm in result["arms"]:
        parts = ("weights", "buffers", "values", "gradients", "moments", "positions", "bookkeeping")
        assert arm["state"] == sum(arm[part] for part in parts)
        assert arm["peak"] == max(arm["training"], arm["generation"])
        assert arm["state_bytes_per_parameter"] == arm["state"] / result["parameters"]
        assert arm["fits"] is True
    full, ticket, lora, _ = result["arms"]
    assert full["weights"] == ticket["weights"] == lora["weights"] == 2 * result["parameters"]
    assert ticket["trained"] == result["nnz"]


def test_options_reach_the_plan(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--tokens",
        "16",
        "--arms",
        "lora, ticket",
        "--lora-rank",
        "3",
        "--dtype",
        "float32",
        "--padded",
    ]
    result = as_json(
        capsys, folder, *options, "--gradient-checkpointing", "--completions", "7", "--density", "0.2"
    )
    assert [arm["arm"] for arm in result["arms"]] == ["lora", "ticket"]
    assert result["arms"][0]["lora_rank"] == 3
    assert result["arms"][0]["fits"] is None
    assert result["padded"]
    assert result["gradient_checkpointing"]
    assert all(arm["recomputed"] > 0 for arm in result["arms"])
    assert result["arms"][0]["weights"] == 4 * result["parameters"]
    assert result["completions"] == 7


def test_the_table_says_what_fits(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--density", "0.1", "--tokens", "16", "--gpu-memory", "1GiB") == 0
    shown = capsys.readouterr().out
    verdict = next(line for line in shown.splitlines() if "fits 1.00 GiB" in line)
    assert verdict.split()[-3:] == ["no", "no", "no"]  # the reserve alone fills it
    for label in ("weights", "gradients", "moments", "positions", "activations", "generation cache"):
        assert label in shown
    assert "ticket, 10 %" in shown
    assert "18 bytes a parameter" in shown


def test_where_a_plan_does_not_fit_it_says_what_does(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [folder, "--density", "0.1", "--batch", "8", "--tokens", "64", "--arms", "ticket"]
    (needs,) = as_json(capsys, *options)["arms"]
    size = f"{(2**30 + needs['peak'] - 1) / 10**6}MB"
    (arm,) = as_json(capsys, *options, "--gpu-memory", size)["arms"]
    assert (arm["fits"], [way["gradient_checkpointing"] for way in arm["fits_with"]]) == (
        False,
        [False, True],
    )
    assert [way["batch"] for way in arm["fits_with"]] == [4, 8]
    assert run(*options, "--gpu-memory", size) == 0
    assert "ticket fits with --batch 4 (" in capsys.readouterr().out


def test_a_shipped_base_is_planned_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    from multiticket import bases

    if not bases.names():
        pytest.skip("no base ships yet")
    result = as_json(capsys, bases.names()[0], "--arms", "ticket", "--tokens", "16")
    assert result["arms"][0]["state"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu-memory", "lots"], "'lots' is not an amount of memory; write 24GiB or 80GB, for example."),
        (
            ["--arms", "full,all"],
            "The arms to plan are some of full, ticket, lora, shira, each once, not 'full,all'.",
        ),
        (["--density", "2"], "The density must be above 0 and at most 1, such as 0.01, but is 2."),
        (["--batch", "0"], "batch must be at least 1, but is 0."),
        (["--density", "1e-9"], "The mask would be empty"),
    ],
)
def test_mistakes_end_in_a_sentence(
    folder: str, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "absent")) == 2
    assert "There is no config.json in" in capsys.readouterr().err
    assert run("surely-no-such-model") == 2
    assert "Cannot read the configuration of 'surely-no-such-model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("24", 24 * 2**30),
    ],
)
def test_memory_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-3GiB", "0", "12 apples", "nan", "inf"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**29, "1.50 GiB")]
)
def test_sizes_are_shown_in_powers_of_1024(count: int, text: str) -> None:
    assert binary_size(count) == text


def test_several_gpus_are_planned_beside_one(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, folder, "--gpus", "8", "--gpu-memory", "24GiB", "--arms", "ticket")
    (ticket,) = result["arms"]
    assert result["gpus"] == 8
    assert [one["strategy"] for one in ticket["on_gpus"]] == ["ddp", "fsdp2"]
    assert all(one["fits"] for one in ticket["on_gpus"])
    assert run(folder, "--gpus", "8", "--arms", "ticket") == 0
    shown = capsys.readouterr().out
    assert "on each of 8, FSDP2:" in shown
    assert "sent in a step" in shown
