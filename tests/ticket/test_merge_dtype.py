"""What rounding does to a ticket that is merged into weights of fewer bits, and checkpoints in another dtype."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from ticket_models import bits, same_bits
from tiny_models import tiny
from transformers import AutoModelForCausalLM

from multiticket.cli import main
from multiticket.mask import Mask, fingerprint
from multiticket.ticket import Ticket, merge_checkpoint
from multiticket.ticket.cast import cast_file
from multiticket.ticket.dense import gather


def fine_ticket(model: torch.nn.Module) -> Ticket:
    """fp32 values a little off a bf16 base: by 1e-3 of each weight, less than half of what bf16 can tell apart."""
    mask = Mask.random(model, 0.2)
    weights = dict(model.named_parameters())
    base = {name: gather(weights[name], mask.indices(name)) for name in mask.names}
    values = {name: held.float() * 1.001 + 1e-12 for name, held in base.items()}
    return Ticket(mask, values, fingerprint(mask, base.__getitem__))


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 0


@pytest.mark.parametrize("shard", ["10KB", "5GB"])
def test_a_merged_checkpoint_in_fp32_is_the_ticket_on_the_base_in_fp32(tmp_path: Path, shard: str) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base", max_shard_size=shard)
    ticket = fine_ticket(model)
    done = merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged", torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    model.float()
    ticket.merge(model)
    assert same_bits(bits(merged), bits(model))
    assert (done["dtypes"], done["rounding_error"]) == (["float32"], 0.0)
    assert done["changed"] == done["moved"] > 0
    index = tmp_path / "merged" / "model.safetensors.index.json"
    if index.exists():
        held = sum(
            tensor.nbytes
            for file in (tmp_path / "merged").glob("*.safetensors")
            for tensor in load_file(file).values()
        )
        assert json.loads(index.read_text())["metadata"]["total_size"] == held


def test_what_rounding_does_is_counted(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    ticket = fine_ticket(model)
    done = merge_checkpoint(tmp_path / "base", ticket, tmp_path / "merged")
    base, values, left = (
        torch.cat(parts)
        for parts in zip(
            *(
                (
                    gather(dict(model.named_parameters())[name], flat).double(),
                    ticket.sections[0].values[name].double(),
                    ticket.sections[0].values[name].bfloat16().double(),
                )
                for name, flat in ticket.sections[0].positions.items()
            ),
            strict=True,
        )
    )
    assert done["dtypes"] == ["bfloat16"]
    assert done["moved"] == int((values != base).sum())
    assert done["changed"] == int((left != base).sum()) < done["moved"]
    assert done["rounding_error"] == pytest.approx(float((left - values).norm() / (values - base).norm()))
    assert done["rounding_error"] > 0.5


def test_the_command_says_so_and_offers_the_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    fine_ticket(model).save(tmp_path / "t")
    asked = ["merge", str(tmp_path / "t"), "--model", str(tmp_path / "base"), "--output"]
    run(*asked, str(tmp_path / "rounded"))
    said = " ".join(capsys.readouterr().out.split())
    assert "The weights are bfloat16, the values float32" in said
    assert "of the update's length. --dtype float32 writes" in said
    run(*asked, str(tmp_path / "exact"), "--dtype", "float32")
    assert "rounded" not in capsys.readouterr().out
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["dtype"] == "float32"


def test_values_that_fit_are_not_spoken_of(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "base")
    ticket = fine_ticket(model)
    section = ticket.sections[0]
    short = {name: values.bfloat16() for name, values in section.values.items()}
    done = merge_checkpoint(
        tmp_path / "base", Ticket(section.mask, short, section.fingerprint), tmp_path / "merged"
    )
    assert done["rounding_error"] == 0.0


def test_what_is_no_float_is_kept_as_it_is(tmp_path: Path) -> None:
    kept = {
        "a": torch.arange(7),
        "b": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "c": torch.tensor([True, False]),
        "e": torch.empty(0, 4),
    }
    odd = torch.randn(5).bfloat16()
    save_file({**kept, "d": odd}, tmp_path / "in.safetensors", {"format": "pt"})
    cast_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", torch.float32)
    found = load_file(tmp_path / "out.safetensors")
    for name, tensor in kept.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
    assert torch.equal(found["d"], odd.float())
