"""How much memory a step needs at its peak, above the model's own weights.

On a GPU torch's allocator counts it. On a CPU the process's high-water mark will not do: it keeps what loading
libraries and choosing a mask once needed, and the C allocator's gaps and caches differ from run to run by more than
two arms do. So one step, untimed, runs under torch's memory profiler, which notes every block that tensors take
and give back, temporaries inside an operator included; what the step holds at most beyond its start is added to what
lives at rest (values, moments, positions, adapters). Not seen is memory that is not a tensor's: the scratch space of
matrix products, the same for all arms. The mark itself is reported beside it.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_above_rest(step: Callable[[], None]) -> int:
    """Bytes of CPU tensors that ``step`` holds at its peak beyond what lives when it has ended. Runs it twice.

    The first run teaches the profiler the sizes of blocks that outlive a step and are replaced by the next.
    """
    _blocks(step)
    held, peak = 0, 0
    for count in _blocks(step):
        held += count
        peak = max(peak, held)
    return peak - held


def _blocks(step: Callable[[], None]) -> list[int]:
    """Sizes of blocks in order of time as ``step`` takes them (positive) and gives them back (negative)."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    blocks = [
        event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    blocks.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    return [event["args"]["Bytes"] for event in blocks]


def living() -> int:
    """Bytes of all CPU tensors that Python can reach, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            with suppress(RuntimeError):  # a tensor without memory has no pointer to it
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())
