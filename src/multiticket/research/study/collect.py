"""One table of all runs of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multiticket.research.study.grid import Study
from multiticket.runs.folder import RunFolder

SETTINGS = (
    "task",
    "model",
    "arm",
    "method",
    "density",
    "seed",
    "part",
    "training_seed",
    "learning_rate",
    "steps",
    "nnz",
    "numel",
    "train_s",
    "wall_s",
    "peak_memory_bytes",
    "file_bytes",
)
SCORES = ("pass@1", "greedy", "reward", "n")


def records(study: Study, folder: Path) -> list[dict[str, Any]]:
    """One flat record a finished run: its settings, and its scores as ``before.pass@1``, ``after.greedy``, ..."""
    found = []
    for run in study.runs:
        result = RunFolder(folder / run.name).read_result()
        if result is None:
            continue
        record: dict[str, Any] = {"run": run.name, **{name: result.get(name) for name in SETTINGS}}
        record["split"] = result["eval"]["after"][
            "split"
        ]  # runs of a sweep are measured on the validation split
        for when, scores in result["eval"].items():
            record.update({f"{when}.{name}": scores[name] for name in SCORES})
            record[f"{when}.low"], record[f"{when}.high"] = scores["interval"]
        found.append(record)
    return found


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the records, whole or not at all.

    Raises:
        ValueError: there are none, or pyarrow is missing.
    """
    if not rows:
        raise ValueError("No run of this study is finished, so there is nothing to collect.")
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(
            "Writing Parquet needs pyarrow, which comes with pip install 'multiticket[train]'."
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
