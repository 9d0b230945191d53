"""What one training step costs: full, ticket, LoRA, SHiRA, and the floor (forward and input gradient alone).

    python benchmarks/step_cost.py --rounds 15 --json docs/results/step_cost.json

Each arm is a process of its own with the same random Qwen2 and the same tokens; the parent lets one step at a time, in
a new random order each round, so that a slow moment of the machine hits all arms alike. Reported are the medians over
rounds of the ratios within a round, with their 95 % interval by bootstrap, and the memory that a process took above
what it had after loading libraries and model. Every optimiser is torch's AdamW, fused. LoRA and SHiRA (both PEFT) are
on all linear layers, of a rank that gives the ticket's number of trained values within 2 %.

Predicted from operations: with b the cost of a forward pass, the input gradient costs b and the weight gradient b, so
the floor is 2/3 of full training without its optimiser; a ticket adds about its density in products, and two
transposes a layer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARMS = ("floor", "full", "ticket 1 %", "ticket 0.1 %", "ticket 10 %", "lora", "shira")
RANK = 4


def build_model() -> Any:
    """A Qwen2 of 35.7 M parameters with random weights: 8 layers, width 512, vocabulary 8,192, head tied."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).train()


def prepare(arm: str, model: Any) -> tuple[Any, list[Any]]:
    """The model as the arm trains it, and what it trains."""
    import multiticket as mt

    if arm.startswith("ticket"):
        density = float(arm.split()[1]) / 100
        return model, list(mt.attach(model, mt.Mask.random(model, density)).parameters())
    if arm in ("lora", "shira"):
        import peft

        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        if arm == "lora":
            adapter: Any = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear)
        else:
            adapter = peft.ShiraConfig(r=RANK, target_modules=linear)
        model = peft.get_peft_model(model, adapter)
        return model, [parameter for parameter in model.parameters() if parameter.requires_grad]
    if arm == "floor":
        model.requires_grad_(False)
        return model, []
    return model, list(model.parameters())


def work(arm: str, batch: int, length: int) -> None:
    """One arm's process: a step for each line on standard input, its seconds on standard output."""
    import torch

    model = build_model()
    resident = peak_bytes()
    model, trained = prepare(arm, model)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None
    tokens = torch.randint(0, 8192, (batch, length), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        inputs: dict[str, Any] = {"input_ids": tokens}
        if optimizer is None:
            inputs = {"inputs_embeds": model.get_input_embeddings()(tokens).requires_grad_()}
        model(**inputs, labels=tokens, use_cache=False).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    step()
    count = sum(parameter.numel() for parameter in trained)
    print(json.dumps({"trained": count}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(json.dumps({"s": time.perf_counter() - started, "bytes": peak_bytes() - resident}), flush=True)


def peak_bytes() -> int:
    """The most memory this process has had (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def measure(arms: list[str], rounds: int, batch: int, length: int, threads: int) -> dict[str, Any]:
    """Run the arms in turn; seconds and bytes of each step, by arm."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
    }
    workers = {}
    for arm in arms:
        command = [sys.executable, __file__, "--worker", arm, "--batch", str(batch), "--length", str(length)]
        workers[arm] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
    trained = {arm: json.loads(worker.stdout.readline())["trained"] for arm, worker in workers.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peak = dict.fromkeys(arms, 0)
    order = random.Random(0)
    for number in range(rounds):
        for arm in order.sample(arms, len(arms)):
            workers[arm].stdin.write("step\n")
            workers[arm].stdin.flush()
            answer = json.loads(workers[arm].stdout.readline())
            seconds[arm].append(answer["s"])
            peak[arm] = max(peak[arm], answer["bytes"])
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {"trained": trained, "seconds": seconds, "peak_bytes": peak}


def table(measured: dict[str, Any]) -> str:
    """Time of each arm as a ratio to full training and to the floor, and memory, as Markdown."""
    seconds = measured["seconds"]
    lines = [
        "| arm | trained values | time / full (95 %) | time / floor (95 %) | memory above model |",
        "|---|---|---|---|---|",
    ]
    for arm, own in seconds.items():
        cells = []
        for other in ("full", "floor"):
            ratios = [a / b for a, b in zip(own, seconds[other], strict=True)]
            low, high = interval(ratios)
            cells.append(
                f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})" if arm != other else "1"
            )
        memory = f"{measured['peak_bytes'][arm] / 1e6:.0f} MB"
        lines.append(f"| {arm} | {measured['trained'][arm]:,} | {cells[0]} | {cells[1]} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--json", type=Path, help="also write every step's time here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.batch, options.length)
        return
    measured = measure(options.arms, options.rounds, options.batch, options.length, options.threads)
    print(table(measured))
    if options.json:
        from importlib.metadata import version

        measured["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
