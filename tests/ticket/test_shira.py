"""SHiRA adapters of PEFT as tickets."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiticket import bases
from multiticket.ticket import Ticket
from multiticket.ticket.shira import CONFIG, WEIGHTS, import_shira

peft = pytest.importorskip("peft", reason="PEFT is not installed")


def adapter(folder: Path, dtype: torch.dtype, **options: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """A SHiRA adapter with random values in `folder`, and the base's parameters with it merged."""
    model, _ = bases.load("tiny-qwen2", dtype)
    config = peft.ShiraConfig(r=2, target_modules=["q_proj", "down_proj"], random_seed=3, **options)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "shira_weight" in name:
            parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return folder, {name: parameter.detach().clone() for name, parameter in merged.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ticket_does_what_merging_the_adapter_does_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, merged = adapter(tmp_path / "shira", dtype)
    model, _ = bases.load("tiny-qwen2", dtype)
    ticket = import_shira(folder, model)
    assert ticket.dtypes == (dtype,)
    assert ticket.provenance["imported_from"] == "peft SHiRA"
    assert ticket.nnz == sum(
        v.numel() for k, v in load_file(folder / WEIGHTS).items() if k.endswith("weight")
    )
    ticket.save(tmp_path / "t.safetensors")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with Ticket.load(tmp_path / "t.safetensors").applied(model):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, merged[name]), name
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_another_base_is_refused(tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path / "shira", torch.float32)
    model, _ = bases.load("tiny-qwen2")
    ticket = import_shira(folder, model)
    next(model.parameters()).data.add_(0)
    dict(model.named_parameters())[ticket.mask.names[0]].data.add_(1)
    with pytest.raises(ValueError, match="base"):
        ticket.check(model)


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    model, _ = bases.load("tiny-qwen2")
    with pytest.raises(ValueError, match=r"holds no PEFT adapter with adapter_config\.json"):
        import_shira(tmp_path, model)
    folder, _ = adapter(tmp_path / "shira", torch.float32)
    tensors = load_file(folder / WEIGHTS)
    first = next(key for key in tensors if key.endswith("shira_weight"))

    def changed(**more: torch.Tensor) -> None:
        save_file({**tensors, **more}, folder / WEIGHTS)

    changed(**{"base_model.model.lm_head.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"also changes base_model\.model\.lm_head\.weight"):
        import_shira(folder, model)
    changed(**{first.replace("weight", "indices"): torch.zeros(2, 1, dtype=torch.int32)})
    with pytest.raises(ValueError, match="does not say where the values"):
        import_shira(folder, model)
    changed(**{first.replace("weight", "indices"): torch.full((2, len(tensors[first])), 10**6)})
    with pytest.raises(ValueError, match="outside its shape"):
        import_shira(folder, model)
    changed(**{"base_model.model.nothing.shira_weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has no parameter nothing\.weight"):
        import_shira(folder, model)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(ValueError, match="of the kind LORA, not SHIRA"):
        import_shira(folder, model)
