"""What does a sparse step cost? The report's section, from what ``multiticket bench`` measured.

    multiticket bench --device cpu --rounds 20 --json docs/results/step_cost.json
    multiticket bench --device cuda --json docs/results/step_cost_gpu_NAME.json     # where there is a GPU
    python paper/step_cost_section.py

Takes a second. Prints ratios with intervals, for the CPU and for every GPU that has a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiticket.research.bench.step_cost import caption, ratio_text, references, table, time_over
from multiticket.research.bench.timed_arms import FLOOR
from multiticket.research.study.page_section import Figure, Mark, PageSection, Table, Verdict
from multiticket.runs.folder import read_json
from program import finish, program_parser, run_program

COMMAND = "python paper/step_cost_section.py"

LITTLE = 1.15
"""Over the floor: what was aimed at before it was measured."""
CLAIMED = "ticket 1 %"
"""The arm that the claim is about."""


def read_bench(path: Path) -> dict[str, Any]:
    """What ``multiticket bench --json`` wrote, with the time of several arms.

    Raises:
        ValueError: it is something else, such as a sweep.
    """
    found = read_json(path)
    if not isinstance(found.get("arms"), list) or not all("over" in arm for arm in found["arms"]):
        raise ValueError(f"{path} does not hold the arms that multiticket bench --json writes.")
    if ratio_of(found, "floor") is None:
        raise ValueError(f"{path} has no {CLAIMED} beside a floor: measure both.")
    return found


def step_cost_section(measured: Sequence[Mapping[str, Any]], command: str) -> PageSection:
    """Whether a 1 % step is within `LITTLE` of the floor, wherever it was measured.

    Args:
        measured: each from :func:`read_bench`; the first one's arms come first.
    """
    names = names_of(measured)
    return PageSection(
        name="cost",
        heading="A sparse step costs little more than the forward pass and the input gradient.",
        verdict=verdict([ratio_of(one, "floor") for one in measured]),
        answer=" ".join(_answer(name, one) for name, one in zip(names, measured, strict=True)),
        n="; ".join(f"{one['rounds']} rounds on {name}" for name, one in zip(names, measured, strict=True)),
        command=command,
        notes=[
            f"Little is a factor of {LITTLE:g}, set before anything was measured; reproduced means that the whole "
            "interval is below it everywhere, not reproduced that it is above it somewhere.",
            "The floor is forward pass and input gradient with nothing trained. Arms take one step each in turn, in "
            "random order; a ratio is the median over rounds with the bootstrap's 95 % interval.",
            "On a shared machine the ratio depends on the neighbours: docs/results/step_cost.md has several runs.",
            *_missing(measured),
        ],
        figures=[one for pair in zip(names, measured, strict=True) for one in _figures(*pair)],
        tables=[_table(name, one) for name, one in zip(names, measured, strict=True)],
        numbers={
            "measured": [
                {
                    **{key: one[key] for key in ("command", "shape", "batch", "tokens", "dtype", "device")},
                    **{
                        key: one.get(key)
                        for key in ("processor", "cores", "gpu", "threads", "rounds", "compiled", "versions")
                    },
                    "over": {arm["arm"]: arm["over"] for arm in one["arms"]},
                }
                for one in measured
            ]
        },
    )


def place(measured: Mapping[str, Any]) -> str:
    """``CPU, float32, 2 threads`` or the name of a GPU."""
    if measured["device"] == "cuda":
        return f"{measured.get('gpu') or 'GPU'}, {measured['dtype']}"
    return f"CPU, {measured['dtype']}, {measured['threads']} threads"


def names_of(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where each was measured; of several at one place, what too."""
    places = [place(one) for one in measured]
    return [
        name if places.count(name) == 1 else f"{name}, {_what(one)}"
        for name, one in zip(places, measured, strict=True)
    ]


def _what(measured: Mapping[str, Any]) -> str:
    compiled = ", compiled" if measured.get("compiled") else ""
    size = f"{measured['parameters'] / 1e6:.0f} M"
    return f"{size}, {measured['batch']} x {measured['tokens']} tokens{compiled}"


def ratio_of(measured: Mapping[str, Any], over: str) -> Mapping[str, Any] | None:
    """Median and interval of the claimed arm's time over a reference's; None where either was not measured."""
    found = [arm["over"].get(over) for arm in measured["arms"] if arm["arm"] == CLAIMED]
    return found[0] if found else None


def verdict(ratios: Sequence[Mapping[str, Any] | None]) -> Verdict:
    """Of the ratios to the floor, one a place."""
    intervals = [ratio["interval"] for ratio in ratios if ratio is not None]
    if any(low > LITTLE for low, _ in intervals):
        return "not reproduced"
    return "reproduced" if intervals and all(high <= LITTLE for _, high in intervals) else "not decided"


def _answer(name: str, measured: Mapping[str, Any]) -> str:
    floor, full = ratio_of(measured, "floor"), ratio_of(measured, "full")
    assert floor is not None
    dense = next((arm["over"].get("floor") for arm in measured["arms"] if arm["kind"] == "full"), None)
    said = f"{name}: a {CLAIMED} step takes {ratio_text(floor)} of the floor's time"
    said += f", where full training takes {ratio_text(dense)}" if dense else ""
    return f"{said}; of full training's, {ratio_text(full)}." if full else f"{said}."


def _figures(name: str, measured: Mapping[str, Any]) -> list[Figure]:
    """Over the floor, with a mark for what is little, and over another reference."""
    figures = [time_over(measured, kind, name) for kind in _kinds(measured)[:2]]
    little = Mark(at=LITTLE, label=f"little, {LITTLE:g}")
    return [figures[0].model_copy(update={"marks": [*figures[0].marks, little]}), *figures[1:]]


def _kinds(measured: Mapping[str, Any]) -> list[str]:
    """The floor first."""
    return sorted(references(measured), key=lambda kind: kind != FLOOR)


def _table(name: str, measured: Mapping[str, Any]) -> Table:
    said = f"{name}: {caption(measured)}. Ratios of times within a round, with 95 % intervals"
    return table(measured, _kinds(measured), said)


def _missing(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    devices = {one["device"] for one in measured}
    return [] if "cuda" in devices else ["Nothing was measured on a GPU."]


def main() -> None:
    parser = program_parser(__doc__ or "", "step_cost")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="the folder of measurements"
    )
    options = parser.parse_args()
    gpus = sorted(options.results.glob("step_cost_gpu_*.json"))
    files = [options.results / "step_cost.json", *(file for file in gpus if "sweep" not in read_json(file))]
    finish(step_cost_section([read_bench(file) for file in files], COMMAND), options.section)


if __name__ == "__main__":
    run_program(main)
