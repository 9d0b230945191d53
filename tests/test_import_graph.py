"""Imports go one way: no room of the package imports a later one, and the library needs torch and little else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import multiticket

ROOT = Path(multiticket.__file__).parent
REPOSITORY = Path(__file__).parents[1]
LIBRARY = ("mask", "ticket", "sparse")
ROOMS = (
    *LIBRARY,
    "errors",
    "tasks",
    "bases",
    "quiet",
    "arms.facts",
    "config",
    "models",
    "runs",
    "generate",
    "arms",
    "evaluate",
    "integrations",
    "train",
    "plan",
    "research.stats",
    "research.study",
    "research.report",
    "research.theory",
    "research.bench",
    "cli",
)
"""Packages and single modules of multiticket; each may import itself and those before it."""
NEEDED = {"torch", "numpy", "safetensors"}
"""What the library may import beside the standard library and itself."""
OPTIONAL = {
    "bitsandbytes": "inside one function, which dequantises a weight that it quantised",
    "triton": "kernels for CUDA; without it the same is done by torch",
    "huggingface_hub": "inside the functions that push a ticket to the hub or get one from there",
    "transformers": "inside one function, which reads how a checkpoint of an architecture names its tensors",
}


def imports_of(source: str) -> set[str]:
    """Dotted names of all that a module imports, in functions and under TYPE_CHECKING too; `from a import b`: a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room_of(name: str) -> str | None:
    """The room that a dotted name lies in, such as ``multiticket.mask.rule.MaskRule`` in ``mask``.

    Of the package itself: None for its version, else the room that a public name comes from; the whole of it counts
    as the last room that it has names of.
    """
    parts = name.split(".")[1:]
    if parts == ["__version__"]:
        return None
    if not parts:
        return "bases"
    if parts[0] in multiticket._WHERE:
        parts = multiticket._WHERE[parts[0]].split(".")[1:]
    pair = ".".join(parts[:2])
    return pair if pair in ROOMS else parts[0]


def upward(module: str, source: str) -> list[str]:
    """What `source`, as the module of this dotted name, imports from later rooms."""
    own = ROOMS.index(room_of(module) or "")
    ours = {name for name in imports_of(source) if name.split(".")[0] == "multiticket"}
    rooms = {name: room_of(name) for name in ours}
    return sorted(name for name, room in rooms.items() if room is not None and ROOMS.index(room) > own)


MODULES = {
    ".".join(("multiticket", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
"""All but the façade, its `__main__` and the empty room of rooms, `research`."""
for _name in ("multiticket", "multiticket.__main__", "multiticket.research"):
    del MODULES[_name]


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_a_later_one(room: str) -> None:
    ours = {name: path for name, path in MODULES.items() if room_of(name) == room}
    assert ours
    wrong = {name: upward(name, path.read_text(encoding="utf-8")) for name, path in ours.items()}
    assert not {name: found for name, found in wrong.items() if found}


def test_every_module_has_a_room() -> None:
    assert {room_of(name) for name in MODULES} <= set(ROOMS)


def test_the_library_needs_torch_numpy_and_safetensors_alone() -> None:
    allowed = {*sys.stdlib_module_names, *NEEDED, *OPTIONAL, "multiticket"}
    for name, path in MODULES.items():
        if room_of(name) in LIBRARY:
            packages = {found.split(".")[0] for found in imports_of(path.read_text(encoding="utf-8"))}
            assert packages <= allowed, name


def test_the_package_imports_no_script() -> None:
    scripts = {path.stem for folder in ("paper", "tools") for path in (REPOSITORY / folder).glob("*.py")}
    assert scripts
    for name, path in MODULES.items():
        packages = {found.split(".")[0] for found in imports_of(path.read_text(encoding="utf-8"))}
        assert not packages & scripts, name


@pytest.mark.parametrize(
    "source",
    [
        "from multiticket.sparse import Attachment",
        "def f():\n    import multiticket.sparse.attachment",
        "if TYPE_CHECKING:\n    from multiticket import attach",
        "from multiticket import tasks as t",
        "import multiticket as mt",
    ],
)
def test_an_upward_import_is_seen(source: str) -> None:
    assert upward("multiticket.ticket.ticket", source)
    assert not upward("multiticket.cli.train", source)


def test_the_version_and_earlier_rooms_may_be_imported() -> None:
    source = (
        "from multiticket import Mask, __version__\nfrom multiticket.mask.rule import MaskRule\nimport torch"
    )
    assert not upward("multiticket.ticket.ticket", source)
