"""What training costs on one GPU: gradients checked, kernels counted, steps timed, graphs, compilers, memory.

    python benchmarks/gpu.py --output docs/results/gpu.json
    python benchmarks/gpu.py --report docs/results/gpu.json     # the tables, in Markdown
    python benchmarks/gpu.py --device cpu --toy                 # everything once, on shapes for a minute of a CPU

Models have the shapes of Qwen2.5 and random weights, made on the device. Arms take steps in turn, in a new random order
each round, in one process; a step ends when the device has finished. The JSON is written after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import multiticket as mt
from multiticket.sparse.watching import attachments_of, watched_by

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QWEN_7B = {"width": 3584, "inner": 18_944, "layers": 28, "heads": 28, "groups": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "width": 896,
        "inner": 4864,
        "layers": 24,
        "heads": 14,
        "groups": 2,
        "vocabulary": 151_936,
        "tied": True,
    },
    "7B": {**QWEN_7B, "vocabulary": 152_064, "tied": False},
    "toy": {"width": 64, "inner": 256, "layers": 2, "heads": 4, "groups": 2, "vocabulary": 512, "tied": True},
}
DENSITY = 0.01
ARMS = ("floor", "full", "direct", "hooks", "columns", "lora", "shira")
PARTS = ("gradients", "profile", "steps", "large", "compile", "graph")


class Bench:
    """Settings, and the JSON that grows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.toy = options.toy
        self.rounds = 2 if options.toy else options.rounds
        self.output = Path(options.output) if options.output else None
        self.started = time.monotonic()
        self.found: dict[str, Any] = {
            "card": torch.cuda.get_device_name() if self.cuda else "cpu",
            "torch": torch.__version__,
            "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        }

    def shape(self, name: str) -> dict[str, Any]:
        return SHAPES["toy" if self.toy else name]

    def add(self, part: str, found: Any) -> None:
        self.found[part] = found
        self.found["seconds"] = round(time.monotonic() - self.started, 1)
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        print(f"[{self.found['seconds']:6.1f} s] {part}: {json.dumps(found)[:600]}", flush=True)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0


def build(bench: Bench, name: str, layers: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = bench.shape(name)
    config = Qwen2Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["inner"],
        num_hidden_layers=layers or shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=32_768,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with bench.device:
            return Qwen2ForCausalLM(config).train()
    finally:
        torch.set_default_dtype(before)


def prepare(kind: str, model: Any) -> tuple[Any, list[nn.Parameter]]:
    """The model as an arm trains it, and what its optimiser steps."""
    if kind == "full":
        return model, list(model.parameters())
    if kind == "floor":
        model.requires_grad_(False)
        return model, []
    if kind in ("lora", "shira"):
        import peft

        layers = [module for name, module in model.named_modules() if name.rpartition(".")[2] in LINEAR]
        a_rank = sum(module.in_features + module.out_features for module in layers)
        rank = max(1, round(DENSITY * sum(p.numel() for p in model.parameters()) / a_rank))
        adapter: Any = (
            peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LINEAR))
            if kind == "lora"
            else peft.ShiraConfig(r=rank, target_modules=list(LINEAR))
        )
        model = peft.get_peft_model(model, adapter)
        return model, [parameter for parameter in model.parameters() if parameter.requires_grad]
    rule = mt.MaskRule("columns" if kind == "columns" else "random", DENSITY)
    gradient = "blocks" if kind == "direct" else "hooks"
    return model, list(mt.attach(model, mt.Mask.from_rule(model, rule), gradient=gradient).parameters())


def tokens_of(bench: Bench, name: str, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, bench.shape(name)["vocabulary"], (batch, length), generator=generator).to(
        bench.device
    )


class Arm:
    """A model, its optimiser, and a step."""

    def __init__(
        self,
        bench: Bench,
        kind: str,
        shape: str,
        tokens: torch.Tensor,
        layers: int | None = None,
        compiled: str = "",
    ) -> None:
        self.bench, self.kind, self.tokens = bench, kind, tokens
        gc.collect()
        model = build(bench, shape, layers)
        before = bench.held()
        self.model, trained = prepare(kind, model)
        self.trained = sum(parameter.numel() for parameter in trained)
        self.attachments = attachments_of(trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None
        inner = self.model.base_model.model if kind in ("lora", "shira") else self.model
        if compiled == "layers":
            for layer in inner.model.layers:
                layer.compile()
        elif compiled == "model":
            self.model.compile()
        del model
        for _ in range(3):
            self.step()
        bench.wait()
        gc.collect()
        self.rest = bench.held() - before

    def loss(self) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": self.tokens}
        if self.optimizer is None:
            inputs = {"inputs_embeds": self.model.get_input_embeddings()(self.tokens).requires_grad_()}
        return self.model(**inputs, labels=self.tokens, use_cache=False).loss

    def step(self) -> None:
        self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def seconds(self) -> float:
        with watched_by(self.attachments):  # it does not pay for the attachments beside it
            self.bench.wait()
            started = time.perf_counter()
            self.step()
            self.bench.wait()
            return time.perf_counter() - started

    def peak(self) -> int:
        """Bytes above the model's weights at the peak of a step."""
        if not self.bench.cuda:
            return 0
        before = self.bench.held()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        return self.rest + torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def many(
    bench: Bench, kinds: tuple[str, ...], shape: str, tokens: torch.Tensor, **how: Any
) -> Iterator[dict[str, Arm]]:
    """Arms side by side; one that cannot be made is left out, and says why."""
    arms: dict[str, Arm] = {}
    for kind in kinds:
        try:
            arms[kind] = Arm(bench, kind, shape, tokens, **how)
        except Exception as error:
            print(f"{kind} left out: {type(error).__name__}: {str(error)[:300]}", flush=True)
    gc.collect()
    gc.disable()
    try:
        yield arms
    finally:
        gc.enable()
        arms.clear()
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()


def compare(bench: Bench, arms: dict[str, Arm], rounds: int) -> dict[str, Any]:
    """Times in turn: the median, and the median ratio to full training with its middle half."""
    seconds: dict[str, list[float]] = {kind: [] for kind in arms}
    order = random.Random(0)
    for _ in range(rounds):
        for kind in order.sample(list(arms), len(arms)):
            seconds[kind].append(arms[kind].seconds())
    found = {}
    for kind, own in seconds.items():
        found[kind] = {"ms": round(1e3 * statistics.median(own), 3), "trained": arms[kind].trained}
        if "full" in seconds:
            ratios = sorted(mine / full for mine, full in zip(own, seconds["full"], strict=True))
            quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            found[kind]["over_full"] = round(quarters[1], 4)
            found[kind]["middle_half"] = [round(quarters[0], 4), round(quarters[2], 4)]
        if bench.cuda:
            found[kind]["peak_gb"] = round(arms[kind].peak() / 1e9, 3)
    return found


# The parts


def gradients(bench: Bench) -> dict[str, Any]:
    """Each path's gradients against the dense ones: the largest difference, relative to the tensor's largest entry."""
    found = {}
    tokens = tokens_of(bench, "0.5B", 2, 64)
    for dtype in (torch.float32, torch.bfloat16):
        dense_model = build(bench, "0.5B", 2, dtype)
        dense_model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        dense = {name: parameter.grad for name, parameter in dense_model.named_parameters()}
        for way, method in (
            ("hooks", "random"),
            ("blocks", "random"),
            ("hooks", "columns"),
            ("hooks", "blocks"),
        ):
            model = build(bench, "0.5B", 2, dtype)
            mask = mt.Mask.from_rule(model, mt.MaskRule(method, DENSITY))
            attachment = mt.attach(model, mask, gradient=way)
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            worst = 0.0
            for name, values in attachment.named_parameters():
                wanted = dense[name].flatten()[mask.indices(name, bench.device)].float()
                largest = float(dense[name].abs().max())
                worst = max(worst, float((values.grad - wanted).abs().max()) / largest)
            optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-3, fused=True)
            optimizer.step()
            written = all(
                torch.equal(attachment.dense_values(name), values.detach().to(dtype))
                for name, values in attachment.named_parameters()
            )
            found[f"{way}, {method} mask, {str(dtype).removeprefix('torch.')}"] = {
                "largest_difference": worst,
                "a_step_is_written": written,
            }
    return found


def profile(bench: Bench) -> dict[str, Any]:
    """Kernel time and launches of one step, 0.5B, 4 x 512 tokens."""
    if not bench.cuda:
        return {}
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    found = {}
    with many(
        bench, ("floor", "full", "direct", "hooks", "columns"), "0.5B", tokens_of(bench, "0.5B", 4, 512)
    ) as arms:
        for kind, arm in arms.items():
            arm.step()
            bench.wait()
            with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
                arm.step()
                bench.wait()
            kernels = [
                event
                for event in seen.events()
                if event.device_type == torch.autograd.DeviceType.CUDA
                and "#" not in event.name  # an annotation
            ]
            by_name: dict[str, float] = {}
            for event in kernels:
                by_name[event.name] = by_name.get(event.name, 0.0) + event.device_time_total
            largest = sorted(by_name.items(), key=lambda item: -item[1])[:6]
            found[kind] = {
                "kernel_ms": round(sum(event.device_time_total for event in kernels) / 1e3, 3),
                "launches": len(kernels),
                "largest_ms": {name[:70]: round(time_us / 1e3, 3) for name, time_us in largest},
            }
    return found


def steps(bench: Bench) -> dict[str, Any]:
    """A step's time and its peak memory above the weights, all arms in turn."""
    found = {}
    for batch, length in ((1, 16), (2, 32)) if bench.toy else ((4, 512), (4, 2048)):
        with many(bench, ARMS, "0.5B", tokens_of(bench, "0.5B", batch, length)) as arms:
            found[f"{batch} x {length}"] = compare(bench, arms, bench.rounds)
    return found


def graph(bench: Bench) -> dict[str, Any]:
    """The whole step in a CUDA graph, where dispatch costs nothing: full training against the ticket."""
    if not bench.cuda:
        return {}
    found: dict[str, Any] = {}
    tokens = tokens_of(bench, "0.5B", 4, 512)
    replays: dict[str, Callable[[], None]] = {}
    kept = []
    for kind in ("full", "hooks", "columns"):
        try:
            model, trained = prepare(kind, build(bench, "0.5B"))
            optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True, capturable=True)

            def step(model: Any = model, optimizer: Any = optimizer) -> None:
                optimizer.zero_grad(set_to_none=True)
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
                optimizer.step()

            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            replays[kind] = captured.replay
            kept.append((model, optimizer, captured))
        except Exception as error:
            found[kind] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    seconds: dict[str, list[float]] = {kind: [] for kind in replays}
    order = random.Random(0)
    for _ in range(bench.rounds):
        for kind in order.sample(list(replays), len(replays)):
            bench.wait()
            started = time.perf_counter()
            replays[kind]()
            bench.wait()
            seconds[kind].append(time.perf_counter() - started)
    for kind, own in seconds.items():
        found[kind] = {"ms": round(1e3 * statistics.median(own), 3)}
        if "full" in seconds:
            found[kind]["over_full"] = round(statistics.median(own) / statistics.median(seconds["full"]), 4)
    kept.clear()
    return found


def compiled(bench: Bench) -> dict[str, Any]:
    """Each layer compiled by itself, at 2,048 and 8,192 tokens; and a whole model of six layers."""
    found = {}
    cases: list[tuple[str, int, int, int, tuple[str, ...]]] = [
        ("layers", 4, 512, 24, ("full", "hooks", "columns", "lora")),
        ("layers", 4, 2048, 24, ("full", "hooks", "columns", "lora")),
        ("model", 4, 512, 6, ("full", "hooks", "columns")),
    ]
    if bench.toy:
        cases = [("layers", 1, 16, 2, ("full", "hooks", "columns"))]
    for how, batch, length, layers, kinds in cases:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 256
        with many(
            bench, kinds, "0.5B", tokens_of(bench, "0.5B", batch, length), layers=layers, compiled=how
        ) as arms:
            found[f"{how}, {layers} layers, {batch} x {length}"] = compare(bench, arms, bench.rounds)
            bench.found["compile"] = found
    return found


def large(bench: Bench) -> dict[str, Any]:
    """A ticket of a 7B shape with checkpointed activations, 1 x 1,024 tokens."""
    tokens = tokens_of(bench, "7B", 1, 16 if bench.toy else 1024)
    if bench.cuda:
        torch.cuda.empty_cache()
    model = build(bench, "7B")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model, trained = prepare("hooks", model)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    seconds = []
    for _ in range(2 if bench.toy else 6):
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        bench.wait()
        started = time.perf_counter()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bench.wait()
        seconds.append(time.perf_counter() - started)
    return {
        "trained": sum(p.numel() for p in trained),
        "weights_gb": round(weights / 1e9, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if bench.cuda else None,
        "ms": round(1e3 * statistics.median(seconds[1:]), 1),
    }


DO: dict[str, Callable[[Bench], Any]] = {
    "gradients": gradients,
    "profile": profile,
    "steps": steps,
    "graph": graph,
    "compile": compiled,
    "large": large,
}


def report(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    lines = [f"`{found['command']}` on one {found['card']}, torch {found['torch']}."]
    if found.get("gradients"):
        lines += [
            "",
            "| gradients | largest difference to the dense ones | a step is written |",
            "|---|---|---|",
        ]
        for case, figures in found["gradients"].items():
            said = "yes" if figures["a_step_is_written"] else "**no**"
            lines.append(f"| {case} | {figures['largest_difference']:.1e} | {said} |")
    if found.get("profile"):
        lines += ["", "| one step, 4 x 512 | kernel time, ms | launches |", "|---|---|---|"]
        lines += [
            f"| {arm} | {f['kernel_ms']:.1f} | {f['launches']:,} |" for arm, f in found["profile"].items()
        ]
    tables = {**found.get("steps", {}), **{f"compiled: {k}": v for k, v in found.get("compile", {}).items()}}
    if found.get("graph"):
        tables["whole step in a CUDA graph, 4 x 512"] = found["graph"]
    for title, arms in tables.items():
        lines += [
            "",
            f"| {title} | ms | over full (middle half) | peak above the weights, GB |",
            "|---|---|---|---|",
        ]
        for arm, figures in arms.items():
            if "failed" in figures:
                lines.append(f"| {arm} | {figures['failed']} | | |")
                continue
            half = figures.get("middle_half")
            spread = f" ({half[0]:.2f} to {half[1]:.2f})" if half else ""
            peak = figures.get("peak_gb")
            lines.append(
                f"| {arm} | {figures['ms']:.1f} | {figures.get('over_full', 0):.2f}{spread} | "
                f"{'' if peak is None else f'{peak:.2f}'} |"
            )
    if found.get("large"):
        big = found["large"]
        lines += [
            "",
            f"7B shape, 1 % ticket of {big['trained']:,} values, checkpointed, 1 x 1,024 tokens: "
            f"{big['ms']:.0f} ms a step, {big['peak_gb']} GB at the peak, of which {big['weights_gb']} are weights.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each arm")
    parser.add_argument("--toy", action="store_true", help="small shapes and two rounds")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--report", help="print the tables of this JSON file, and do nothing else")
    options = parser.parse_args()
    if options.report:
        print(report(json.loads(Path(options.report).read_text(encoding="utf-8"))), end="")
        return
    bench = Bench(options)
    for part in options.parts.split(","):
        try:
            bench.add(part, DO[part](bench))
        except Exception as error:
            bench.add(part + "_failed", f"{type(error).__name__}: {error}")
            gc.collect()
    print(report(bench.found))


if __name__ == "__main__":
    main()
