"""The plan of a CPU's process: the head as torch works it out there, prompts computed once, and whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.profiler import ProfilerActivity, profile
from trl.trainer import utils as trl_utils

import multiticket as mt
from multiticket import arms
from multiticket.plan.fitting import what_fits
from multiticket.plan.head import fused_head_bytes
from multiticket.plan.memory import RESERVE, plan
from multiticket.plan.workload import Workload
from multiticket.sparse.autograd.fused_head import use_sparse_head
from multiticket.train.shared_groups import after_prompts

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "planned_memory.py"


def config() -> Any:
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3}
    return hf.Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)


def most_allocated(work: Any) -> int:
    """Bytes of tensors that live at once while ``work()`` runs, above those that lived before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    living = most = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        living += change
        most = max(most, living)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_the_fused_head_holds_on_a_cpu_what_is_planned(arm: str, dtype: torch.dtype) -> None:
    use_sparse_head()
    tokens, vocabulary, width = 256, 12_000, 64
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    if arm == "ticket":
        mt.attach(head, mt.Mask.random(head, 0.05))
    if arm == "lora":
        head.requires_grad_(False)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    words = torch.randint(0, vocabulary, (tokens,))
    scored = trl_utils._ChunkedLogProbFunction.apply(
        hidden, head.weight, None, words, 1.0, 32768, None, 1.0, ("log_probs",)
    )[0]
    measured = most_allocated(lambda: scored.sum().backward())
    expected = fused_head_bytes(arms.get(arm), "cpu", tokens, vocabulary, width, dtype.itemsize)
    assert expected == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("common", [0, 4, 30])
def test_prompts_computed_once_save_what_is_planned(tmp_path: Path, common: int) -> None:
    rows, groups, prompt, completion = 12, 3, 40, 10
    config().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model: Any = hf.AutoModelForCausalLM.from_config(config()).train()
    first, which = torch.arange(groups), torch.arange(rows) % groups
    ids = torch.cat(
        [torch.randint(1, 90, (groups, prompt))[which], torch.randint(1, 90, (rows, completion))], 1
    )
    ids[:, :common] = ids[0, :common]
    attended, before = torch.ones_like(ids), prompt - 1
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        continued = after_prompts(model, ids[:, :before], attended[:, :before], first, which)
        continued(input_ids=ids[:, before:], attention_mask=attended[:, before:])
    measured = sum(t.untyped_storage().nbytes() for at, t in seen.items() if at not in own)
    asked: dict[str, Any] = {"dtype": "float32", "arms": ("full",), "device": "cpu", "padded": True}
    asked |= {"tokens": prompt + completion, "batch": rows}
    alone, shared = (
        plan(Workload(str(tmp_path), **asked, prompts=prompts)).arms[0]
        for prompts in (None, (groups, prompt, common))
    )
    assert shared.activations < 0.6 * alone.activations
    assert shared.activations == pytest.approx(measured, rel=0.1)


def test_what_fits_is_the_largest_batch_that_does(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    workload = Workload(str(tmp_path), batch=12, tokens=64, arms=("ticket",), density=0.1)
    peaks: dict[tuple[int, bool], int] = {}
    for batch in (1, 2, 3, 4, 6, 12):
        for checkpointing in (False, True):
            tried = replace(workload, batch=batch, completions=12, gradient_checkpointing=checkpointing)
            peaks[batch, checkpointing] = plan(tried).arms[0].peak
    most = peaks[4, False]
    larger = max(batch for batch, checkpointing in peaks if checkpointing and peaks[batch, True] <= most)
    assert larger > 4
    found = what_fits(workload, RESERVE + most)
    assert found == [(4, False, most), (larger, True, peaks[larger, True])]
    assert what_fits(workload, RESERVE) == []


def test_the_process_of_a_run_takes_what_was_planned(tmp_path: Path) -> None:
    """A small one, of which libraries are most; ``benchmarks/planned_memory.py`` measures larger models."""
    command = [sys.executable, str(BENCHMARK), "tiny-qwen2", "--cases", "64x256", "--json"]
    subprocess.run([*command, str(tmp_path / "out.json")], check=True, capture_output=True)
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["planned"]["peak"] == pytest.approx(found["measured"], rel=0.2)
