"""All runs of a study in one table, ``runs.parquet``: what a study commits of its runs.

A row is one finished run: its settings and scores as columns, and as JSON its whole ``config`` and ``result``, so that
``multiticket study rerun`` needs nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig, build
from multiticket.research.study.grid import Study
from multiticket.runs.folder import RunFolder
from multiticket.ticket.atomic import replacing

TABLE = "runs.parquet"
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
        run_folder = RunFolder(folder / run.name)
        result = run_folder.read_result()
        if result is None:
            continue
        record: dict[str, Any] = {"run": run.name, **{name: result.get(name) for name in SETTINGS}}
        record["split"] = result["eval"]["after"]["split"]  # a sweep's runs are measured on validation
        for when, scores in result["eval"].items():
            record.update({f"{when}.{name}": scores[name] for name in SCORES})
            record[f"{when}.low"], record[f"{when}.high"] = scores["interval"]
        record["config"] = run_folder.read_config().model_dump_json()
        record["result"] = json.dumps(result, ensure_ascii=False)
        found.append(record)
    return found


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the records, whole or not at all.

    Raises:
        ValueError: there are none, or pyarrow is missing.
    """
    if not rows:
        raise ValueError("No run of this study is finished, so there is nothing to collect.")
    pyarrow = _pyarrow()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="zstd")


def read_run(folder: Path, name: str) -> tuple[RunConfig, dict[str, Any]]:
    """Settings and result of one run, from the ``runs.parquet`` in a study's folder.

    Raises:
        ValueError: there is no such table, it has no such run, or it was written without settings.
    """
    path = folder / TABLE
    if not path.is_file():
        raise ValueError(
            f"There is no {path}: give the folder of a study's report, or collect its runs first."
        )
    try:
        table = _pyarrow().parquet.read_table(path, columns=["run", "config", "result"])
    except (ValueError, KeyError):
        raise ValueError(f"{path} is not a table of runs with their settings: collect them again.") from None
    for row in table.to_pylist():
        if row["run"] == name:
            return build(json.loads(row["config"])), json.loads(row["result"])
    raise ValueError(f"{path} has no run {name!r}; its first is {table['run'][0].as_py()!r}.")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(
            "Parquet needs pyarrow, which comes with pip install 'multiticket[train]'."
        ) from None
    return pyarrow
