"""Masks and tickets beside what a user would do instead: time, memory, bytes on disk.

    OMP_NUM_THREADS=1 python benchmarks/masks_and_tickets.py --sizes 0.5B 1.5B 7B --rounds 3 --json out.json

Shapes are those of Qwen2.5; weights are bf16 and hold a constant (their values do not matter), and exist only for
sizes whose weights fit ``--memory-gb``. Every measurement runs in a process of its own, on one thread, the
contenders of one operation in turn within each round. Seconds are of the processor (user and system), which a
shared machine disturbs less than the clock, and wall seconds stand beside them; both are medians over the rounds,
ratios are taken within a round. Memory is the peak of the resident set above what stood when the operation began.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DENSITY = 0.01
QWEN = {
    "0.5B": (896, 4864, 24, 128, 151936, True),
    "1.5B": (1536, 8960, 28, 256, 151936, True),
    "7B": (3584, 18944, 28, 512, 152064, False),
}
"""hidden, intermediate, layers, width of keys and values, vocabulary, tied."""
CACHE_LINE = 64


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen2.5 model's tensors."""
    hidden, intermediate, layers, keys, vocabulary, tied = QWEN[size]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        one = {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (intermediate, hidden),
            "mlp.up_proj.weight": (intermediate, hidden),
            "mlp.down_proj.weight": (hidden, intermediate),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in one.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else shapes | {"lm_head.weight": (vocabulary, hidden)}


class Measured:
    """Seconds of the processor and of the clock, and peak memory, of a ``with`` block."""

    def __enter__(self) -> Measured:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        self.before = _status("VmRSS")
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.peak = max(0, _status("VmHWM") - self.before)

    def row(self, **more: Any) -> dict[str, Any]:
        return {"cpu_s": self.cpu, "wall_s": self.wall, "peak_bytes": self.peak, **more}


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


# --- one process, one contender ---------------------------------------------------------------------------------


def mask_of(size: str) -> Any:
    from multiticket.mask import Mask, MaskRule

    return Mask.from_shapes(shapes_of(size), MaskRule("random", DENSITY))


def model_of(size: str) -> Any:
    """Parameters of the size's names and shapes, bf16, every page touched."""
    import torch

    model = torch.nn.Module()
    for name, shape in shapes_of(size).items():
        owner = model
        *path, last = name.split(".")
        for piece in path:
            if piece not in owner._modules:
                owner.add_module(piece, torch.nn.Module())
            owner = owner._modules[piece]
        weight = torch.full(shape, 0.01, dtype=torch.bfloat16)
        owner.register_parameter(last, torch.nn.Parameter(weight, requires_grad=False))
    return model


def ticket_of(size: str) -> Any:
    """Random values, bound to the constant weights of `model_of`."""
    import torch

    from multiticket.mask import fingerprint
    from multiticket.ticket import Ticket

    mask = mask_of(size)
    values = {name: torch.randn(mask.count(name)).bfloat16() for name in mask.names}
    base = fingerprint(mask, lambda name: torch.full((mask.count(name),), 0.01, dtype=torch.bfloat16))
    return Ticket(mask, values, base)


def generate_multiticket(size: str, folder: Path) -> dict[str, Any]:
    with Measured() as measured:
        mask = mask_of(size)
        count = sum(len(mask.indices(name)) for name in mask.names)
    return measured.row(values=count)


def generate_numpy(size: str, folder: Path) -> dict[str, Any]:
    import numpy as np

    generator, count = np.random.default_rng(0), 0
    with Measured() as measured:
        for shape in shapes_of(size).values():
            n = math.prod(shape)
            count += len(np.sort(generator.choice(n, int(n * DENSITY), replace=False)))
    return measured.row(values=count)


def generate_randperm(size: str, folder: Path) -> dict[str, Any]:
    import torch

    count = 0
    with Measured() as measured:
        for shape in shapes_of(size).values():
            n = math.prod(shape)
            count += len(torch.randperm(n)[: int(n * DENSITY)].sort().values)
    return measured.row(values=count)


def save_multiticket(size: str, folder: Path) -> dict[str, Any]:
    ticket = ticket_of(size)
    with Measured() as measured:
        ticket.save(folder / "t")
    return measured.row(values=ticket.nnz, file_bytes=(folder / "t").stat().st_size)


def load_multiticket(size: str, folder: Path) -> dict[str, Any]:
    from multiticket.ticket import Ticket

    ticket_of(size).save(folder / "t")
    with Measured() as measured:
        ticket = Ticket.load(folder / "t")
    return measured.row(values=ticket.nnz, file_bytes=(folder / "t").stat().st_size)


def _bool_masks(size: str) -> dict[str, Any]:
    """What goes into the .pt file: a boolean of every tensor's shape, and the values."""
    import torch

    content: dict[str, Any] = {}
    for name, shape in shapes_of(size).items():
        n = math.prod(shape)
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.randint(0, n, (int(n * DENSITY),))] = True
        content[name] = {
            "mask": mask.view(shape),
            "values": torch.ones(int(mask.sum()), dtype=torch.bfloat16),
        }
    return content


def save_bool(size: str, folder: Path) -> dict[str, Any]:
    import torch

    content = _bool_masks(size)
    with Measured() as measured:
        torch.save(content, folder / "t")
    values = sum(len(one["values"]) for one in content.values())
    return measured.row(values=values, file_bytes=(folder / "t").stat().st_size)


def load_bool(size: str, folder: Path) -> dict[str, Any]:
    import torch

    torch.save(_bool_masks(size), folder / "t")
    with Measured() as measured:
        content = torch.load(folder / "t", weights_only=True)
    values = sum(len(one["values"]) for one in content.values())
    return measured.row(values=values, file_bytes=(folder / "t").stat().st_size)


def save_dense(size: str, folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    state = model_of(size).state_dict()
    with Measured() as measured:
        save_file(state, folder / "t")
    return measured.row(file_bytes=(folder / "t").stat().st_size)


def load_dense(size: str, folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    save_file(model_of(size).state_dict(), folder / "t")
    with Measured() as measured:
        copies = {name: weight.clone() for name, weight in load_file(folder / "t").items()}
    return measured.row(file_bytes=(folder / "t").stat().st_size, tensors=len(copies))


def _shira(size: str) -> Any:
    """PEFT's SHiRA on the linear layers (it adapts no others), sized to about 1 % of them."""
    import torch
    from peft import ShiraConfig, get_peft_model

    model = torch.nn.Module()
    for name, shape in shapes_of(size).items():
        if name.endswith("proj.weight"):
            linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16, device="meta")
            linear.weight = torch.nn.Parameter(torch.full(shape, 0.01, dtype=torch.bfloat16))
            model.add_module(name.removesuffix(".weight").replace(".", "_"), linear)
    config = ShiraConfig(r=8, target_modules=list(model._modules), random_seed=0, init_weights=False)
    return get_peft_model(model, config)


def save_shira(size: str, folder: Path) -> dict[str, Any]:
    model = _shira(size)
    with Measured() as measured:
        model.save_pretrained(folder)
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return measured.row(values=values, file_bytes=(folder / "adapter_model.safetensors").stat().st_size)


def apply_shira(size: str, folder: Path) -> dict[str, Any]:
    model = _shira(size)
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.merge_adapter()
    model.unmerge_adapter()
    with Measured() as measured:
        model.merge_adapter()
    return measured.row(values=values)


def apply_first(size: str, folder: Path) -> dict[str, Any]:
    model, ticket = model_of(size), ticket_of(size)
    with Measured() as measured:
        ticket.apply(model)
    return measured.row(values=ticket.nnz)


def apply_again(size: str, folder: Path) -> dict[str, Any]:
    model, ticket = model_of(size), ticket_of(size)
    ticket.apply(model).revert()
    with Measured() as measured:
        ticket.apply(model)
    return measured.row(values=ticket.nnz)


def revert(size: str, folder: Path) -> dict[str, Any]:
    model, ticket = model_of(size), ticket_of(size)
    applied = ticket.apply(model)
    with Measured() as measured:
        applied.revert()
    return measured.row(values=ticket.nnz)


def floor_scatter(size: str, folder: Path) -> dict[str, Any]:
    """The least that torch can do: int64 positions at hand, one scatter a tensor, and no check of anything."""
    import torch

    ticket = ticket_of(size)
    weights = {
        name: torch.full((math.prod(s),), 0.01, dtype=torch.bfloat16) for name, s in shapes_of(size).items()
    }
    jobs = [
        (weights[n].view(torch.int16), flat.long(), ticket.sections[0].values[n].view(torch.int16))
        for n, flat in ticket.sections[0].positions.items()
    ]
    with Measured() as measured:
        for weight, flat, values in jobs:
            weight.scatter_(0, flat, values)
    return measured.row(values=ticket.nnz)


def floor_gather(size: str, folder: Path) -> dict[str, Any]:
    """The reading half of apply, by itself: one gather a tensor."""
    import torch

    ticket = ticket_of(size)
    weights = {
        name: torch.full((math.prod(s),), 0.01, dtype=torch.bfloat16) for name, s in shapes_of(size).items()
    }
    jobs = [(weights[n].view(torch.int16), flat.long()) for n, flat in ticket.sections[0].positions.items()]
    with Measured() as measured:
        for weight, flat in jobs:
            weight.gather(0, flat)
    return measured.row(values=ticket.nnz)


def apply_bool(size: str, folder: Path) -> dict[str, Any]:
    weights, content = model_of(size).state_dict(), _bool_masks(size)
    with Measured() as measured:
        for name, one in content.items():
            weights[name][one["mask"]] = one["values"]
    return measured.row(values=sum(len(one["values"]) for one in content.values()))


def apply_dense(size: str, folder: Path) -> dict[str, Any]:
    import torch

    model = model_of(size)
    trained = {name: torch.full_like(weight, 0.02) for name, weight in model.state_dict().items()}
    with Measured() as measured:
        model.load_state_dict(trained)
    return measured.row()


def stream(size: str, folder: Path) -> dict[str, Any]:
    """Bytes a second that this core reads and writes in order: 512 MiB copied to 512 MiB."""
    import torch

    source, target = torch.ones(2**27), torch.ones(2**27)
    with Measured() as measured:
        target.copy_(source)
    return measured.row(bandwidth=2 * source.nbytes / measured.cpu)


NEEDS_WEIGHTS = 2.2
"""Copies of the weights that a contender with weights holds at most, bytes of booleans included."""
OPERATIONS: dict[str, dict[str, tuple[Callable[[str, Path], dict[str, Any]], float]]] = {
    "positions": {
        "multiticket": (generate_multiticket, 0),
        "numpy choice": (generate_numpy, 0),
        "torch randperm": (generate_randperm, 0.35),
    },
    "save": {
        "multiticket": (save_multiticket, 0),
        "bool mask .pt": (save_bool, 0.6),
        "PEFT SHiRA": (save_shira, NEEDS_WEIGHTS),
        "dense copy": (save_dense, 1),
    },
    "load": {
        "multiticket": (load_multiticket, 0),
        "bool mask .pt": (load_bool, 1.2),
        "dense copy": (load_dense, NEEDS_WEIGHTS),
    },
    "apply": {
        "multiticket, again": (apply_again, 1),
        "multiticket, first": (apply_first, 1),
        "bare gather": (floor_gather, 1),
        "bare scatter": (floor_scatter, 1),
        "bool mask": (apply_bool, 1.6),
        "PEFT SHiRA": (apply_shira, NEEDS_WEIGHTS),
        "dense copy": (apply_dense, NEEDS_WEIGHTS),
    },
    "revert": {
        "multiticket": (revert, 1),
        "bare scatter": (floor_scatter, 1),
        "dense copy": (apply_dense, NEEDS_WEIGHTS),
    },
    "stream": {"copy": (stream, 0)},
}
"""Contender, and how many times the bf16 weights' bytes it holds at most. Ratios are to an operation's first."""


# --- all contenders, in turn --------------------------------------------------------------------------------------


def in_own_process(operation: str, contender: str, size: str, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", operation, contender, size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {limit_s:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(sizes: list[str], rounds: int, memory_gb: float, limit_s: float) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        weights_gb = sum(math.prod(shape) for shape in shapes_of(size).values()) * 2 / 1e9
        for operation, contenders in OPERATIONS.items():
            fit = [c for c, (_, copies) in contenders.items() if copies * weights_gb <= memory_gb]
            found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in fit}
            for _ in range(rounds):
                for contender in fit:
                    found[contender].append(in_own_process(operation, contender, size, limit_s))
                    print(size, operation, contender, found[contender][-1], file=sys.stderr)
            rows += [
                summary(size, operation, contender, results, found[fit[0]])
                for contender, results in found.items()
            ]
            rows += [
                {
                    "size": size,
                    "operation": operation,
                    "contender": c,
                    "left_out": "would hold too much memory here",
                }
                for c in contenders
                if c not in fit
            ]
    return rows


def summary(
    size: str, operation: str, contender: str, results: list[dict[str, Any]], ours: list[dict[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"size": size, "operation": operation, "contender": contender}
    good = [result for result in results if "failed" not in result]
    if not good:
        return row | {"failed": results[0]["failed"]}
    for key in good[0]:
        row[key] = statistics.median(result[key] for result in good)
    if good[0].get("values"):
        row["ns_per_value"] = row["cpu_s"] / row["values"] * 1e9
        if "file_bytes" in row:
            row["bytes_per_value"] = row["file_bytes"] / row["values"]
    ratios = [
        a["cpu_s"] / b["cpu_s"] for a, b in zip(results, ours, strict=True) if "cpu_s" in a and "cpu_s" in b
    ]
    row["ratio"], row["ratio_min"], row["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
    return row


def floor_bytes(size: str) -> dict[str, float]:
    """Bytes that must cross the memory bus to write k scattered bf16 values: every cache line that holds one, read
    and written back, and the positions (int32) and values that say what to write; once more to read the originals."""
    lines = values = 0.0
    for shape in shapes_of(size).values():
        n = math.prod(shape)
        k = int(n * DENSITY)
        per_line = CACHE_LINE // 2
        lines += n / per_line * (1 - (1 - k / n) ** per_line)
        values += k
    write = lines * CACHE_LINE * 2 + values * (4 + 2)
    read = lines * CACHE_LINE + values * (4 + 2)
    return {"revert": write, "apply": read + write}


def markdown(rows: list[dict[str, Any]], sizes: list[str]) -> str:
    text = [
        "| size | operation | contender | CPU s | wall s | ratio (min ... max) "
        "| ns a value | peak MB | file MB | bytes a value |"
    ]
    text.append("|" + "---|" * 10)
    for row in rows:
        start = f"| {row['size']} | {row['operation']} | {row['contender']} |"
        if "cpu_s" not in row:
            text.append(f"{start} {row.get('left_out') or row['failed']} | | | | | | |")
            continue
        cells = [
            f"{row['cpu_s']:.3f}",
            f"{row['wall_s']:.3f}",
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f} ... {row['ratio_max']:.2f})",
            f"{row['ns_per_value']:.1f}" if "ns_per_value" in row else "",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['file_bytes'] / 1e6:.1f}" if "file_bytes" in row else "",
            f"{row['bytes_per_value']:.3f}" if "bytes_per_value" in row else "",
        ]
        text.append(f"{start} {' | '.join(cells)} |")
    text.append("")
    by_key = {(row["size"], row["operation"], row["contender"]): row for row in rows if "cpu_s" in row}
    for size in sizes:
        bandwidth = by_key.get((size, "stream", "copy"), {}).get("bandwidth")
        for operation, contender in (("apply", "multiticket, again"), ("revert", "multiticket")):
            row = by_key.get((size, operation, contender))
            if row and bandwidth:
                least = floor_bytes(size)[operation]
                text.append(
                    f"- {size} {operation}: at least {least / 1e6:.0f} MB must move, "
                    f"{least / bandwidth:.3f} s at this core's {bandwidth / 1e9:.1f} GB/s; "
                    f"measured {row['cpu_s']:.3f} s, {row['cpu_s'] * bandwidth / least:.1f} times that."
                )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["0.5B"], choices=list(QWEN))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory-gb", type=float, default=5.0, help="leave out what would hold more in weights"
    )
    parser.add_argument(
        "--limit-s", type=float, default=900.0, help="give up on one measurement after this long"
    )
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    parser.add_argument("--one", nargs=3, metavar=("OPERATION", "CONTENDER", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        import torch

        torch.set_num_threads(1)
        operation, contender, size = options.one
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(OPERATIONS[operation][contender][0](size, Path(folder))))
        return
    rows = measure(options.sizes, options.rounds, options.memory_gb, options.limit_s)
    print(markdown(rows, options.sizes))
    if options.json:
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        floors = {size: floor_bytes(size) for size in options.sizes}
        content = {"machine": machine, "density": DENSITY, "floor_bytes": floors, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
