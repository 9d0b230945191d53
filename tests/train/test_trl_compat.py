"""The private names of TRL that the trainer reaches, and the versions that it takes."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from trl import GRPOTrainer, chat_template_utils
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import utils

import multiticket
from multiticket.train.trl_compat import READ_IN, SCORES_BY_CALLING, SERIES, require_tested

ROOT = Path(multiticket.__file__).parent
OWNERS = {
    "GRPOTrainer": GRPOTrainer,
    "VLLMGeneration": VLLMGeneration,
    "utils": utils,
    "chat_template_utils": chat_template_utils,
}


@pytest.mark.parametrize("name", READ_IN)
def test_the_installed_version_has_every_name(name: str) -> None:
    if name == "utils._use_triton" and not SCORES_BY_CALLING:
        pytest.skip("TRL 1.14 scores completions alone on every device")
    owner, _, attribute = name.partition(".")
    source = Path(str(inspect.getsourcefile(OWNERS[owner])))
    assert hasattr(OWNERS[owner], attribute) or f"self.{attribute} =" in source.read_text(encoding="utf-8")


def test_nobody_else_reaches_them() -> None:
    private = {name.partition(".")[2] for name in READ_IN}
    allowed = {
        ROOT / "train" / "trl_compat.py",
        ROOT / "sparse" / "autograd" / "fused_head.py",
        ROOT / "generate" / "tool_templates.py",
    }
    for path in {*ROOT.rglob("*.py")} - allowed:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        reached = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & private
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} & private
        imports = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "trl"
        }
        assert not reached | defined | imports, path


def test_pip_is_asked_for_the_versions_that_were_tested() -> None:
    toml = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = [line for line in toml.splitlines() if line.strip().startswith('"trl')]
    asked = Requirement(line.strip().strip('",')).specifier
    for minor in range(10, 20):
        for patch in (0, 9):
            tested = f"1.{minor}" in SERIES
            assert asked.contains(f"1.{minor}.{patch}") == tested
    assert version("trl") in asked


@pytest.mark.parametrize("other", ["1.13.0", "1.15.0", "1.17.0", "0.29.1", "2.0.0"])
def test_another_version_is_refused_in_a_sentence(other: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^Training needs TRL .*, and {other} is installed: pip install"
    ) as said:
        require_tested(other)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("installed", ["1.14.0", "1.14.2", "1.16.0"])
def test_a_tested_version_is_taken(installed: str) -> None:
    require_tested(installed)


def test_the_refusal_comes_when_the_trainer_is_imported(tmp_path: Path) -> None:
    metadata = tmp_path / "trl-1.13.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.13.0\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import multiticket.train.trainer"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Training needs TRL 1.14 or 1.16, and 1.13.0 is installed" in done.stderr.splitlines()[-1]
