"""What ``multiticket train --dry-run`` plans, beside the largest that the process of such a run has been.

    python benchmarks/planned_memory.py MODEL --cases 4x128 16x128 16x512 --arms ticket full --json out.json

Every case is a run of two steps in a process of its own, on this machine's CPU: a micro-batch of so many rollouts, of
so many tokens, an eighth of which are generated. The settings that are planned are those of the run. The measured
peak is the process's largest resident set (``peak_memory_bytes`` of ``result.json``), libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

DIGIT = "1"
"""Repeated until a prompt is long enough; a token each in most vocabularies."""
AROUND = 40
"""Tokens left for what a chat template puts around a prompt."""


class Rambling:
    """Prompts of one length, and a score as good as random, so that every rollout has a backward pass."""

    name = "rambling"

    def __init__(self, prompt: int, completion: int) -> None:
        self.prompt, self.max_completion_tokens = prompt, completion

    def problems(self, split: str) -> Any:
        from datasets import Dataset

        prompts = [f"{n:2} {DIGIT * self.prompt}" for n in range(32)]
        return Dataset.from_dict({"prompt": prompts, "answer": [str(n % 2) for n in range(32)]})

    def score(self, completion: str, answer: str) -> float:
        return zlib.crc32(completion.encode()) / 2**32

    def correct(self, completion: str, answer: str) -> bool:
        return self.score(completion, answer) > 0.5


def __getattr__(name: str) -> Rambling:
    """The task of a case, as a run names it: ``task_384_128``."""
    kind, *lengths = name.split("_")
    if kind != "task" or len(lengths) != 2:
        raise AttributeError(name)
    return Rambling(*map(int, lengths))


def settings(model: str, case: str, arm: str, dtype: str, checkpointing: bool) -> dict[str, Any]:
    """A run's: two steps of one micro-batch, for the first has no moments yet, measured on next to nothing."""
    rows, tokens = map(int, case.split("x"))
    completion = tokens // 8
    return {
        "task": f"planned_memory:task_{tokens - completion - AROUND}_{completion}",
        "model": model,
        "arm": arm,
        "dtype": dtype,
        "rollouts": rows,
        "group": min(rows, 4),
        "micro_batch": rows,
        "steps": 2,
        "learning_rate": 1e-4,
        "max_completion_tokens": completion,
        "eval": {"problems": 1, "samples": 1},
        "grpo": {"gradient_checkpointing": True} if checkpointing else {},
    }


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """The plan and the peak of a run, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", json.dumps(asked), folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        measured = json.loads((Path(folder) / "run" / "result.json").read_text())["peak_memory_bytes"]
        planned = json.loads((Path(folder) / "planned.json").read_text())
    return {"asked": asked, "planned": planned, "measured": measured}


def child(asked: dict[str, Any], folder: Path) -> None:
    """The run itself. The plan is made by a process of its own, so as to leave nothing behind in this one."""
    if (folder / "planned.json").exists():
        from multiticket.config import build
        from multiticket.train.run import run_training

        run_training(build(asked), folder / "run", show_progress=False)
        return
    from multiticket.config import build
    from multiticket.plan.preview import preview

    found = preview(build(asked), folder / "run")
    work = found["work"]
    planned = {**found["memory"], "tokens": work["longest_prompt"] + work["longest_completion"]}
    (folder / "planned.json").write_text(json.dumps(planned))
    subprocess.run([sys.executable, __file__, "--child", json.dumps(asked), str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--cases", nargs="+", default=["4x128", "16x128"])
    parser.add_argument("--arms", nargs="+", default=["ticket"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child[0]), Path(options.child[1]))
        return
    found = []
    for arm in options.arms:
        for case in options.cases:
            one = measure(settings(options.model, case, arm, options.dtype, options.gradient_checkpointing))
            planned, measured = one["planned"]["peak"], one["measured"]
            sizes = f"planned {planned / 2**30:6.2f} GiB  measured {measured / 2**30:6.2f} GiB"
            tokens = one["planned"]["tokens"]
            print(f"{arm:8} {case:8} ({tokens} tokens)  {sizes}  {planned / measured:5.2f}", flush=True)
            found.append({"case": case, "arm": arm, **one})
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
