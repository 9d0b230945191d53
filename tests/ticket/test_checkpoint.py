"""Checkpoints on disk: merge into them, and make tickets of their differences, without loading a model."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from ticket_models import bits, make_ticket, same_bits
from tiny_models import tiny

from multiticket.mask import Mask
from multiticket.ticket import Ticket, changed_between, compose, merge_checkpoint
from multiticket.ticket.changed import by_group
from multiticket.ticket.checkpoint import Checkpoint


def load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("shard", ["10KB", "5GB"])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_checkpoint_is_the_model_merged_in_memory(tmp_path: Path, tied: bool, shard: str) -> None:
    model = tiny(tied)
    model.save_pretrained(tmp_path / "base", max_shard_size=shard)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "pytorch_model.bin").write_text("the base in another format")
    before = {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()}
    ticket = make_ticket(model, Mask.random(model, 0.1))
    done = merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged")
    ticket.merge(model)
    assert same_bits(bits(load(tmp_path / "merged")), bits(model))
    assert done["values"] == ticket.nnz
    assert {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()} == before
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert names == set(before) - {"pytorch_model.bin"}
    assert {p.name for p in tmp_path.iterdir()} == {"base", "merged"}


def test_what_the_base_says_of_itself_is_not_said_of_the_merged_model(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    told = ("README.md", "base.json", "all_results.json", "eval_results.json", "curve.png")
    kept = ("LICENSE", "LICENSE.md", "chat_template.jinja", "modeling_own.py")
    for name in (*told, *kept):
        (tmp_path / "base" / name).write_text("{}")
    merge_checkpoint(tmp_path / "base", make_ticket(model, Mask.random(model, 0.1)), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names >= {*kept}
    assert not names & {*told}


def test_a_tied_head_that_is_stored_again_is_written_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny()
    model.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    merge_checkpoint(tmp_path / "base", make_ticket(model, Mask.random(model, 0.1)), tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], weights["lm_head.weight"])


def test_a_composed_ticket_and_a_checkpoint_in_fp32(tmp_path: Path) -> None:
    model = tiny()
    ticket = compose([make_ticket(model, Mask.random(model, 0.1, part=part), part) for part in range(2)])
    model.float().save_pretrained(tmp_path / "base")
    merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged")
    ticket.merge(model)
    assert same_bits(bits(load(tmp_path / "merged")), bits(model))


def test_names_without_the_models_prefix(tmp_path: Path) -> None:
    """GPT-2's published files lack the "transformer." of the model with a head."""
    from safetensors.torch import load_file, save_file

    model = tiny(gpt2=True)
    model.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): weight for name, weight in weights.items()},
        tmp_path / "base" / "model.safetensors",
        {"format": "pt"},
    )
    ticket = make_ticket(model, Mask.random(model, 0.1))
    merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged")
    ticket.merge(model)
    assert same_bits(bits(load(tmp_path / "merged")), bits(model))


def test_merge_refuses_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny(), tiny(seed=3)
    model.save_pretrained(tmp_path / "base")
    other.save_pretrained(tmp_path / "other")
    ticket = make_ticket(model, Mask.random(model, 0.1))
    with pytest.raises(ValueError, match="another base than"):
        merge_checkpoint(tmp_path / "other", ticket, tmp_path / "out")
    with pytest.raises(ValueError, match="already exists"):
        merge_checkpoint(tmp_path / "base", ticket, tmp_path / "other")
    with pytest.raises(ValueError, match="not a folder"):
        merge_checkpoint(tmp_path / "nothing", ticket, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no model\*\.safetensors"):
        merge_checkpoint(tmp_path / "empty", ticket, tmp_path / "out")
    foreign = tiny(gpt2=True)
    with pytest.raises(ValueError, match=r"does not store .* as one tensor"):
        merge_checkpoint(tmp_path / "base", make_ticket(foreign, Mask.random(foreign, 0.1)), tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        merge_checkpoint(tmp_path / "base", ticket, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "other", "empty"}


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Checkpoint(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        Checkpoint(tmp_path / "base")


def test_merging_holds_the_values_and_not_the_model(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = torch.nn.Module()
    model.register_parameter("w", torch.nn.Parameter(torch.randn(4000, 5000)))  # 80 MB
    (tmp_path / "base").mkdir()
    save_file({"w": model.w.detach()}, tmp_path / "base" / "model.safetensors")
    ticket = make_ticket(model, Mask.random(model, 0.001))
    tracemalloc.start()
    merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert ticket.nnz == 20_000


class TestChanged:
    def folders(self, tmp_path: Path, tied: bool = True) -> tuple[Path, Path]:
        model = tiny(tied)
        model.save_pretrained(tmp_path / "base")
        with torch.no_grad():
            up = model.model.layers[1].mlp.up_proj.weight.view(-1)
            up[:100] += 1.0
            up[100:150] += 2.0
            model.model.embed_tokens.weight.view(-1)[7] = float("nan")
            model.model.norm.weight[3] *= 1 + 1 / 128
        model.save_pretrained(tmp_path / "tuned")
        return tmp_path / "base", tmp_path / "tuned"

    @pytest.mark.parametrize("tied", [True, False])
    def test_the_ticket_reproduces_the_tuned_model(self, tmp_path: Path, tied: bool) -> None:
        base, tuned = self.folders(tmp_path, tied)
        ticket, updates = changed_between(base, tuned)
        ticket.save(tmp_path / "t")
        model = load(base)
        before = bits(model)
        with Ticket.load(tmp_path / "t").applied(model):
            assert same_bits(bits(model), bits(load(tuned)))
        assert same_bits(bits(model), before)
        assert ticket.nnz == 152
        assert ticket.mask.rule.method == "changed"
        assert updates["model.layers.1.mlp.up_proj.weight"].changed == 150
        assert sum(update.numel for update in updates.values()) == sum(p.numel() for p in model.parameters())

    @pytest.mark.parametrize("stored", [False, True])
    def test_a_head_that_was_tied_on_the_way(self, tmp_path: Path, stored: bool) -> None:
        base, tuned = tiny(False), tiny(True, seed=1)
        base.save_pretrained(tmp_path / "base")
        state = tuned.state_dict() if stored else None
        tuned.save_pretrained(tmp_path / "tuned", state_dict=state)
        ticket, updates = changed_between(tmp_path / "base", tmp_path / "tuned")
        merge_checkpoint(tmp_path / "base", ticket, tmp_path / "again")
        assert same_bits(dict(load(tmp_path / "again").state_dict()), dict(tuned.state_dict()))
        assert updates["lm_head.weight"].kept > 1000

    def test_a_head_that_was_untied_on_the_way(self, tmp_path: Path) -> None:
        base, tuned = tiny(True), tiny(False, seed=1)
        base.save_pretrained(tmp_path / "base")
        tuned.save_pretrained(tmp_path / "tuned")
        with pytest.raises(ValueError, match="output head of its own"):
            changed_between(tmp_path / "base", tmp_path / "tuned")
        with torch.no_grad():
            tuned.lm_head.weight.copy_(tuned.model.embed_tokens.weight)
        tuned.save_pretrained(tmp_path / "same")
        ticket, _ = changed_between(tmp_path / "base", tmp_path / "same")
        model = load(tmp_path / "base")
        with ticket.applied(model):
            assert same_bits(dict(model.state_dict()), dict(tuned.state_dict()))

    @pytest.mark.parametrize("more", ["base", "tuned"])
    def test_a_tensor_that_only_one_of_both_has_is_named(self, tmp_path: Path, more: str) -> None:
        for which in ("base", "tuned"):
            model = tiny(seed=len(which))
            if which == more:
                model.config.layer_types = None
                larger = type(model)(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3}))
                model = larger.bfloat16()
            model.save_pretrained(tmp_path / which)
        with pytest.raises(ValueError, match=r"does not store model.layers.2"):
            changed_between(tmp_path / "base", tmp_path / "tuned")

    def test_tolerance_and_top(self, tmp_path: Path) -> None:
        base, tuned = self.folders(tmp_path)
        name = "model.layers.1.mlp.up_proj.weight"
        ticket, _ = changed_between(base, tuned, tolerance=1.5)
        assert ticket.mask.indices(name).tolist() == list(range(100, 150))
        ticket, updates = changed_between(base, tuned, top=0.01)
        assert ticket.mask.count(name) == int(2048 * 0.01)
        assert set(ticket.mask.indices(name).tolist()) <= set(range(100, 150))
        assert updates[name].changed == 150
        assert updates[name].kept == 20

    def test_sparsity_as_published(self, tmp_path: Path) -> None:
        base, _ = self.folders(tmp_path)
        original = load(base)
        with torch.no_grad():
            weight = original.model.layers[0].mlp.up_proj.weight
            weight.view(-1)[0] = 0.0
            weight.view(-1)[1] = 1.0
        original.save_pretrained(tmp_path / "b2")
        with torch.no_grad():
            weight.view(-1)[0] = 5e-6  # below the published tolerance
            weight.view(-1)[1] = 1.0 + 1 / 64
        original.save_pretrained(tmp_path / "t2")
        _, updates = changed_between(tmp_path / "b2", tmp_path / "t2")
        update = updates["model.layers.0.mlp.up_proj.weight"]
        assert (update.changed, update.beyond_published) == (2, 1)
        assert update.sparsity == 1 - 1 / 2048
        assert by_group(updates)["layer 0"].changed == 2

    def test_equal_or_different_models_are_refused(self, tmp_path: Path) -> None:
        base, _ = self.folders(tmp_path)
        with pytest.raises(ValueError, match="does not differ"):
            changed_between(base, base)
        tiny(gpt2=True).save_pretrained(tmp_path / "gpt2")
        with pytest.raises(ValueError, match="does not store"):
            changed_between(base, tmp_path / "gpt2")
        with pytest.raises(ValueError, match="tolerance"):
            changed_between(base, base, tolerance=-1)
        with pytest.raises(ValueError, match="Density"):
            changed_between(base, base, top=2)

    def test_without_a_model_class_the_checkpoints_own_names_serve(self, tmp_path: Path) -> None:
        base, tuned = self.folders(tmp_path)
        for folder in (base, tuned):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
        ticket, _ = changed_between(base, tuned)
        assert ticket.nnz == 152
