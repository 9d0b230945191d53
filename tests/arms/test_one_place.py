"""What one arm does differently lies in its own file: elsewhere nobody asks which arm it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import multiticket
from multiticket import arms
from multiticket.arms.facts import ARMS

ROOT = Path(multiticket.__file__).parent


def branches(source: str) -> list[str]:
    """Where a program asks for an arm by its name: comparisons, matches, and tables of what each arm does."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            asked = _names([node.left, *node.comparators])
        elif isinstance(node, ast.MatchValue):
            asked = _names([node.value])
        elif isinstance(node, ast.Dict) and len(_names([key for key in node.keys if key])) > 1:
            asked = _names([key for key in node.keys if key])
        else:
            continue
        if asked:
            found.append(f"{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def _names(nodes: list[ast.expr]) -> list[str]:
    """The arms' names among constants, in collections of them too; an argument or a key is no name."""
    parts = [
        part
        for node in nodes
        for part in (node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node])
    ]
    return [part.value for part in parts if isinstance(part, ast.Constant) and part.value in ARMS]


@pytest.mark.parametrize(
    "source",
    [
        'if config.arm == "lora": pass',
        'method = config.method if arm != "ticket" else None',
        'if arm in ("full", "ticket"): pass',
        'match arm:\n    case "lora": pass',
        '{"full": 1, "ticket": 2}[arm]',
    ],
)
def test_a_branch_is_seen(source: str) -> None:
    assert branches(source)


def test_only_the_arms_own_room_asks_which_arm_it_is() -> None:
    found = {
        str(path.relative_to(ROOT)): branches(path.read_text(encoding="utf-8"))
        for path in ROOT.rglob("*.py")
        if path.parent != ROOT / "arms"
    }
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_what_its_line_says(name: str) -> None:
    arm = arms.get(name)
    assert arm.name == arm.facts.name == name
    assert arm.facts.is_adapter == ("peft" in arm.packages)
