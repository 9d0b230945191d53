"""What a sync of a ticket costs a vLLM engine: k values, vLLM's own sparse patches, or every dense tensor.

    python benchmarks/engine_sync.py BASE [BASE ...] --json docs/results/engine_sync.json

Runs where vLLM is installed (``make vllm-environment``, then ``.venv-vllm/bin/python``). Each BASE is a shipped base or
a folder. One engine in this process, in the base's own dtype; in each round every way runs once, in a new random order,
with the same values; reported are medians and quartiles over rounds. The ways must leave the same bits in all
parameters, and the base's afterwards, else the program fails.

- ``k values``: `TicketSync.send`, with the coding for JSON that HTTP needs.
- ``sparse patches``: vLLM's ``load_checkpoint_weight_patches``, what its ``sparse_nccl`` transfer runs on arrival.
- ``dense``: ``load_weights`` of each tensor by itself, as TRL pushes a model.
- ``swap``: from one ticket to another of those that a server holds (`TicketCache.use`); sends nothing.

Bytes are those that travel for one sync, before any coding. The transports themselves are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MULTITICKET_VLLM_CPU_WEIGHTS", "keep")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from multiticket import __version__, bases
from multiticket.integrations.vllm.clients import LocalEngine
from multiticket.integrations.vllm.description import describe
from multiticket.integrations.vllm.sync import TicketSync
from multiticket.integrations.vllm.worker import TicketWorker
from multiticket.mask import Mask, fingerprint
from multiticket.ticket import Ticket

WORKER = f"{TicketWorker.__module__}.{TicketWorker.__qualname__}"


class Case:
    """One base in one engine, and each way to bring the same values into it."""

    def __init__(self, base: str, density: float) -> None:
        from vllm import LLM
        from vllm.config import WeightTransferConfig
        from vllm.model_executor.model_loader import checkpoint_weight_patch as sparse

        place = bases.resolve(base)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place)
        self.dtype = self.model.dtype
        self.mask = Mask.random(self.model, density=density, seed=0)
        self.base = self._values(self.mask)
        self.new = self._moved(self.base, 1)
        self.llm = LLM(
            model=place,
            dtype=str(self.dtype).removeprefix("torch."),
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=8,
            skip_tokenizer_init=True,
            weight_transfer_config=WeightTransferConfig(backend="multiticket"),
            worker_extension_cls=WORKER,
        )
        inside = self.llm.apply_model(lambda model: model)[0]
        expected = fingerprint(self.mask, self.base.__getitem__)
        began = time.perf_counter()
        self.sync = TicketSync(LocalEngine(self.llm), self.mask, expected)
        self.first_ms = 1e3 * (time.perf_counter() - began)
        self.first_bytes = len(json.dumps(describe(self.mask)))
        self._hold_tickets()
        flat = torch.cat(list(self.new.values()))
        dense = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        for name, value in self.new.items():
            dense[name].view(-1)[self.mask.indices(name)] = value
        patches = [
            sparse.CheckpointWeightPatch(
                name, self.mask.shape(name), self.dtype, value, self.mask.indices(name).to(torch.int32)
            )
            for name, value in self.new.items()
        ]
        self.ways: dict[str, Callable[[], Any]] = {
            "k values": lambda: self.sync.send(flat),
            "sparse patches": lambda: sparse.load_checkpoint_weight_patches(inside, patches),
            "dense": lambda: [inside.load_weights([pair]) for pair in dense.items()],
        }
        size = self.dtype.itemsize
        numel = sum(parameter.numel() for parameter in self.model.parameters())
        self.bytes = {
            "k values": size * self.mask.nnz,
            "sparse patches": (size + 4) * self.mask.nnz,
            "dense": size * numel,
        }
        self.numel = numel

    def _values(self, mask: Mask) -> dict[str, torch.Tensor]:
        return {
            name: self.model.get_parameter(name).detach().view(-1)[mask.indices(name)] for name in mask.names
        }

    def _moved(self, base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (v + 0.05 * torch.randn(v.shape, generator=generator)).to(v.dtype)
            for name, v in base.items()
        }

    def _hold_tickets(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, seed in [("one", 1), ("two", 2)]:
                mask = Mask.random(self.model, density=self.mask.rule.share, seed=seed)
                base = self._values(mask)
                path = Path(folder) / name
                Ticket(mask, self._moved(base, seed), fingerprint(mask, base.__getitem__)).save(path)
                (told,) = self.llm.collective_rpc("multiticket_load", args=(name, str(path)))
                assert "refused" not in told, told

    def checksums(self) -> dict[str, str]:
        return self.llm.collective_rpc("compute_weight_checksums")[0]

    def back(self) -> None:
        self.sync.send(torch.cat(list(self.base.values())))


def measure(case: Case, rounds: int) -> dict[str, Any]:
    before = case.checksums()
    seen: dict[str, dict[str, str]] = {}
    for way, act in case.ways.items():
        act()
        seen[way] = case.checksums()
        case.back()
        if case.checksums() != before:
            raise SystemExit(f"The base did not come back after {way}.")
    if any(each != seen["dense"] for each in seen.values()) or seen["dense"] == before:
        raise SystemExit("The ways left different bits.")
    times: dict[str, list[float]] = {way: [] for way in [*case.ways, "swap"]}
    for number in range(rounds):
        for way in random.Random(number).sample(list(case.ways), len(case.ways)):
            times[way].append(_ms(case.ways[way]))
            case.back()
    for number in range(rounds + 1):
        name = ("one", "two")[number % 2]
        took = _ms(lambda name=name: case.llm.collective_rpc("multiticket_use", args=(name,)))
        if number:  # the first one had no ticket to take out
            times["swap"].append(took)
    case.llm.collective_rpc("multiticket_use", args=(None,))
    if case.checksums() != before:
        raise SystemExit("The base did not come back after the swaps.")
    return {way: {"bytes": case.bytes.get(way, 0), "ms": _quartiles(took)} for way, took in times.items()}


def _ms(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - began)


def _quartiles(took: list[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(took, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", nargs="+")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import vllm

    cases = []
    for base in options.base:
        case = Case(base, options.density)
        cases.append(
            {
                "base": Path(base).name,
                "dtype": str(case.dtype).removeprefix("torch."),
                "numel": case.numel,
                "k": case.mask.nnz,
                "first_ms": round(case.first_ms, 1),
                "first_bytes": case.first_bytes,
                "ways": measure(case, options.rounds),
            }
        )
        case.llm.llm_engine.engine_core.shutdown()
    names = " ".join(Path(base).name for base in options.base)
    told = {
        "command": f"python benchmarks/engine_sync.py {names} --rounds {options.rounds}",
        "density": options.density,
        "versions": {"multiticket": __version__, "vllm": vllm.__version__, "torch": torch.__version__},
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cases": cases,
    }
    for case_told in cases:
        print(
            f"{case_told['base']}, {case_told['dtype']}, {case_told['numel']:,} parameters, k = {case_told['k']:,}"
        )
        print("| way | bytes | ms, median (quartiles) |\n|---|---|---|")
        for way, found in case_told["ways"].items():
            low, middle, high = found["ms"]
            print(f"| {way} | {found['bytes']:,} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
        print(f"once: {case_told['first_ms']} ms, {case_told['first_bytes']:,} bytes\n")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
