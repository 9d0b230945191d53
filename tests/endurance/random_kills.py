"""SIGKILL at random times, over training, saving, merging and pushing: nothing that was whole is lost or half there.

    python tests/endurance/random_kills.py --count 1000

A killed run is resumed until it is done, and must have made what the undisturbed run makes, byte for byte. A file that
is saved again and again is always one of its versions; a merged folder is not there or whole; a repository on the hub
(a stand-in on this machine) holds one of the pushes with that push's card. Prints a line for each kind of work.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from stand_in_hub import TOKEN, start

from conftest import save_toy_model

# The hub's client reads its address when it is imported.  # ruff: noqa: E402
SERVER, ADDRESS = start()
SERVER.handle_error = lambda *_: None  # clients die here
os.environ.update(HF_ENDPOINT=ADDRESS, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")

import torch
from safetensors.torch import load_file
from small_runs import costless, made, small

from multiticket import bases, quiet
from multiticket.mask import Mask
from multiticket.runs.folder import RunFolder
from multiticket.sparse import attach
from multiticket.ticket import Ticket, hub, merge_checkpoint
from multiticket.train.run import run_training

AUTO = {"learning_rate": "auto"}
Work = Callable[[], None]


def killed(work: Work, after: float) -> bool:
    """Whether `work`, in a process of its own, was still busy after so many seconds, when it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, "the work failed by itself"
            return False
        time.sleep(min(0.01, max(0.0, end - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def seconds(work: Work) -> float:
    """How long `work` takes in a process of its own."""
    began = time.monotonic()
    assert not killed(work, 600)
    return time.monotonic() - began


def training(folder: Path, rng: random.Random, toy: Path) -> Iterator[int]:
    """Kills so far; runs of several kinds, each resumed until it is done."""
    shapes: list[tuple[str, dict[str, Any]]] = [
        ("ticket", {}),
        ("ticket", {"grpo": {"num_iterations": 2, "steps_per_generation": 4}, "micro_batch": 20, **AUTO}),
        ("full", {}),
        ("lora", {}),
    ]
    expected: list[tuple[dict[str, Any], float]] = []
    for number, (arm, more) in enumerate(shapes):
        whole = folder / f"whole-{number}"
        taken = seconds(lambda: _train(small(toy, arm, **more), whole))  # noqa: B023
        expected.append((made(whole), taken))
    kills = 0
    for run in count():
        number = run % len(shapes)
        arm, more = shapes[number]
        result, taken = expected[number]
        output, reached = folder / f"run-{run}", 0
        while killed(lambda: _train(small(toy, arm, **more), output), rng.uniform(0, 1.1 * taken)):  # noqa: B023
            kills += 1
            reached = _check_run(output, result, reached)
            yield kills
        assert made(output) == result, f"{output} is not what the undisturbed run made"


def _train(config: Any, output: Path) -> None:
    run_training(config, output, resume=(output / "config.json").exists(), show_progress=False)


def _check_run(output: Path, expected: dict[str, Any], reached: int) -> int:
    """What lies in a killed run's folder is whole, and its newest checkpoint is no older than before."""
    run = RunFolder(output)
    if not run.config.exists():
        return reached
    run.read_config()
    run.read_result()
    if run.ticket.exists():
        Ticket.load(run.ticket)
    for line, right in zip(run.steps.read(), expected["metrics"], strict=False):
        assert costless(line) == right
    for step in run.checkpoints.steps():
        checkpoint = run.checkpoints.of(step)
        for file in checkpoint.glob("*.safetensors"):
            load_file(file)
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
    last = run.checkpoints.last() or 0
    assert last >= reached, f"{output} had a checkpoint of step {reached}, and now of {last}"
    return last


def tickets(folder: Path) -> list[Path]:
    """Two tickets of a shipped base, with other values each."""
    paths = []
    for number in range(2):
        model, _ = bases.load("tiny-qwen2")
        attachment = attach(model, Mask.random(model, 0.05))
        with torch.no_grad():
            for values in attachment.parameters():
                values += number + 1
        path = folder / f"{number}.safetensors"
        attachment.ticket(model="tiny-qwen2", task="arithmetic", number=number).save(path)
        paths.append(path)
    return paths


def saving(folder: Path, rng: random.Random, paths: list[Path]) -> Iterator[int]:
    target, whole = folder / "ticket.safetensors", [path.read_bytes() for path in paths]
    loaded = [Ticket.load(path) for path in paths]
    loaded[0].save(target)

    def work() -> None:
        for one in cycle(loaded):
            one.save(target)

    for kills in count(1):
        assert killed(work, rng.uniform(0, 0.1))
        assert target.read_bytes() in whole, "a saved ticket is neither the old nor the new one"
        _clear(folder, target)
        yield kills


def merging(folder: Path, rng: random.Random, paths: list[Path]) -> Iterator[int]:
    base, ticket = bases.resolve("tiny-qwen2"), Ticket.load(paths[0])
    before = _bytes(Path(base))
    merge_checkpoint(base, ticket, folder / "whole")
    whole = _bytes(folder / "whole")

    def work() -> None:
        for number in count():
            merge_checkpoint(base, ticket, folder / f"merged-{number}")

    for kills in count(1):
        assert killed(work, rng.uniform(0, 0.1))
        for output in folder.glob("merged-*"):
            assert _bytes(output) == whole, f"{output} is half a checkpoint"
        assert _bytes(Path(base)) == before, "merging changed the base"
        _clear(folder, folder / "whole")
        yield kills


def pushing(folder: Path, rng: random.Random, paths: list[Path]) -> Iterator[int]:
    os.environ["HF_HOME"] = str(folder / "home")
    loaded = [Ticket.load(path) for path in paths]

    def push(name: str, number: int) -> None:
        hub.push(loaded[number], name)

    versions = []
    for number in range(2):
        assert not killed(lambda: push(f"me/whole-{number}", number), 60)  # noqa: B023
        versions.append(_on_the_hub(f"me/whole-{number}"))

    for kills in count(1):
        name = f"me/killed-{kills // 25}"
        began = len(SERVER.RequestHandlerClass.repos[name].branches["main"]) if _there(name) else 0

        def work(name: str = name) -> None:
            for number in cycle(range(2)):
                push(name, number)

        assert killed(work, rng.uniform(0, 1.0))
        if _there(name):
            commits = SERVER.RequestHandlerClass.repos[name].branches["main"]
            assert len(commits) >= began
            for _, files in commits[1:]:
                held = {path: content.replace(name.encode(), b"NAME") for path, content in files.items()}
                held = {path: content.replace(name[3:].encode(), b"SHORT") for path, content in held.items()}
                assert held in versions, f"{name} has a commit that is none of the pushes"
        yield kills


def _there(name: str) -> bool:
    return name in SERVER.RequestHandlerClass.repos


def _on_the_hub(name: str) -> dict[str, bytes]:
    _, files = SERVER.RequestHandlerClass.repos[name].branches["main"][-1]
    held = {path: content.replace(name.encode(), b"NAME") for path, content in files.items()}
    return {path: content.replace(name[3:].encode(), b"SHORT") for path, content in held.items()}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _clear(folder: Path, kept: Path) -> None:
    """Take away what a killed process left beside what is kept."""
    for path in folder.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(total: int, seed: int) -> None:
    quiet.hush()
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        toy, paths = save_toy_model(folder / "toy"), tickets(folder)
        works = {"train": training, "save": saving, "merge": merging, "push": pushing}
        done = 0
        for number, (kind, work) in enumerate(works.items()):
            own = folder / kind
            own.mkdir()
            began, wanted = time.monotonic(), (total + number) // len(works)
            kills = work(own, rng, toy if kind == "train" else paths)
            for _ in range(wanted):
                next(kills)
            done += wanted
            print(
                f"{kind}: killed {wanted} times in {time.monotonic() - began:.0f} s, nothing lost", flush=True
            )
        print(f"{done} kills, nothing lost")
    gc.unfreeze()  # so that the interpreter can end tidily


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    main(asked.count, asked.seed)
