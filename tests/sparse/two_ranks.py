"""Two gloo processes on one CPU: how the distributed tests start them, and what both kinds of worker share.

A worker script ends in ``serve(CASES)``. Its cases run one after the other in one pair of processes, for the imports
cost more than the cases; each returns figures, which the tests judge.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Figures = dict[str, Any]
SECONDS = 280  # of which a quiet machine uses about ten


def run(script: str, folder: Path) -> dict[str, Figures]:
    """Both ranks' figures by case; a case that failed has ``error``, and the cases after it are missing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).parent / script), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    try:
        for process in ranks:
            process.wait(SECONDS)
    finally:
        for process in ranks:
            process.kill()
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return {case: {"both": [first.get(case), second.get(case)]} for case in first}


def of_case(results: dict[str, Figures], case: str) -> list[Figures]:
    """The figures of one case, by rank."""
    assert case in results, f"{case} did not run, a case before it failed"
    for figures in results[case]["both"]:
        assert figures is not None
        assert "error" not in figures, figures["error"]
    return results[case]["both"]


def serve(cases: dict[str, Callable[[], Figures]]) -> None:
    """Run ``cases`` as the rank that the command line names. A failure ends this rank, and gloo ends the other."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )
    gc.collect()
    gc.freeze()  # as in conftest.py
    results: dict[str, Figures] = {}
    for name, case in cases.items():
        try:
            results[name] = case()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        (folder / f"{rank}.json").write_text(json.dumps(results))
        if "error" in results[name]:
            os._exit(1)
    dist.barrier()
    dist.destroy_process_group()
    gc.unfreeze()


class Block(nn.Module):
    """Odd widths, a bias, and a layer of one row: on two ranks, uneven shards, and a rank without rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(9)
        self.up = nn.Linear(9, 13)
        self.down = nn.Linear(13, 9, bias=False)
        self.gate = nn.Linear(9, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.down(self.up(self.norm(hidden)).tanh())
        return hidden + inner * self.gate(hidden).sigmoid()


class Toy(nn.Module):
    """A tied language model without attention: 31 tokens, width 9, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 9)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 31, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, recompute: bool = False) -> Tensor:
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False) if recompute else block(hidden)
        return self.head(self.norm(hidden))


def toy(dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(0)
    return Toy().to(dtype)


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def batches(steps: int) -> Iterator[Tensor]:
    """The joint batch (8, 6) of each step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randint(1, 31, (8, 6), generator=generator)


def own_half(ids: Tensor) -> Tensor:
    """The rows of the joint batch that this rank trains on."""
    return ids.chunk(2)[dist.get_rank()]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, ids: model(ids),
    share: Callable[[Tensor], Tensor] = lambda ids: ids,
    steps: int = 4,
    clip: float | None = None,
) -> None:
    for ids in batches(steps):
        optimizer.zero_grad()
        ids = share(ids)
        loss_of(forward(model, ids), ids).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
        optimizer.step()


def differs(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two sets of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
