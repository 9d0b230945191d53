"""A process that trains keeps what it frees: its next step finds its memory where it was."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from multiticket.train.allocator import OWN_CHOICES

PROGRAM = """
import resource, sys
import torch
from multiticket.train.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def step():
    kept = [torch.ones(10_000_000) for _ in range(3)]  # 120 MB, 29,297 pages; glibc keeps no block above 32 MiB
for _ in range(6): step()  # the heap grows into its size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(), step(), step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")


def faults(how: str, **environment: str) -> tuple[str, int]:
    plain = {
        name: value for name, value in os.environ.items() if name not in (*OWN_CHOICES, "GLIBC_TUNABLES")
    }
    plain.pop("LD_PRELOAD", None)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        check=True,
        env=plain | environment,
    )
    done, count = ran.stdout.split()
    return done, int(count)


@glibc
def test_memory_that_was_freed_is_used_again():
    done, kept = faults("keep")
    assert done == "True"
    assert kept < faults("leave")[1] / 10


@glibc
@pytest.mark.parametrize(
    "chosen", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=7"}]
)
def test_a_users_own_choice_stays(chosen):
    assert faults("keep", **chosen)[0] == "False"
