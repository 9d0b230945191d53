"""The library hushes nobody; commands hush their own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from multiticket.quiet import ENVIRONMENT


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a fresh process, which inherits nothing of what another test's command has hushed in this one."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


SEEN = """
import os, warnings
before = dict(os.environ)
{imports}
import transformers
assert transformers.logging.get_verbosity() == transformers.logging.WARNING
assert transformers.logging.is_progress_bar_enabled()
changed = {{name for name in os.environ if os.environ[name] != before.get(name)}}
assert not changed & {{'TRANSFORMERS_VERBOSITY', 'HF_HUB_DISABLE_PROGRESS_BARS', 'DATASETS_VERBOSITY'}}, changed
assert not [one for one in warnings.filters if 'huggingface_hub' in str(one[3])]
"""


@pytest.mark.parametrize(
    "modules",
    [
        "multiticket.research.theory.fisher, multiticket.research.theory.run_update",
        "multiticket.train.run, multiticket.evaluate.trained, multiticket.plan.preview",
        "multiticket.cli, multiticket.quiet",
    ],
)
def test_importing_the_library_silences_nothing(modules: str) -> None:
    code = SEEN.format(imports=f"import {modules}")
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["", "import transformers, datasets\n"])
@pytest.mark.parametrize(("words", "quiet"), [(["--version"], True), (["train", "--verbose", "-h"], False)])
def test_a_command_is_quiet_unless_it_is_asked_to_talk(first: str, words: list[str], quiet: bool) -> None:
    code = (
        f"{first}from multiticket.cli import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "import datasets, transformers\n"
        "level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()\n"
        "print([level >= transformers.logging.ERROR, not bars, datasets.are_progress_bars_disabled()])"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([quiet] * 3)
