"""docs/hub.md: its commands run in its order against a stand-in of the hub."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_hub import TOKEN, start

PAGE = Path(__file__).parents[1] / "docs" / "hub.md"
BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_as_a_reader_walks_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    from multiticket import bases

    model, _ = bases.load("tiny-qwen2")
    adapted = peft.get_peft_model(model, peft.ShiraConfig(r=1, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "shira_adapter")
    server, address = start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
    }
    for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            (tmp_path / name).write_text(text, encoding="utf-8")
        for line in [f"python {name}"] if kind == "python" else text.splitlines():
            program, *words = shlex.split(line)
            started = (
                [sys.executable, *words] if program == "python" else [sys.executable, "-m", program, *words]
            )
            done = subprocess.run(
                started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    server.shutdown()
    assert (tmp_path / "merged" / "config.json").is_file()
