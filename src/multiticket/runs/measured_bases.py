"""What bases scored before any training, kept beside the runs that begin from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiticket.config import RunConfig
from multiticket.runs.files import write_json, write_text
from multiticket.runs.folder import read_json


class MeasuredBases:
    """A folder with one file for each way in which a base was measured.

    For runs whose bases stay as they are: a base is known by its name, not by its weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, config: RunConfig, problems: Path, summary: Path | None = None) -> bool:
        """Write what is known of the base of such a run, measured as it measures; whether anything is known.

        Args:
            problems: where the results of single problems are to lie.
            summary: where the scores are to lie, if anywhere.
        """
        kept = self._file(_measured(config))
        if not kept.exists():
            return False
        scores = read_json(kept)
        write_text(problems, "".join(line + "\n" for line in scores["problems"]))
        if summary is not None:
            write_json(summary, scores["summary"])
        return True

    def take(self, config: RunConfig, problems: Path, summary: dict[str, Any]) -> None:
        """Keep what the base of such a run scored, for others.

        Args:
            problems: where the results of single problems lie.
            summary: the scores.
        """
        measured = _measured(config)
        lines = problems.read_text(encoding="utf-8").split("\n")[:-1]
        write_json(self._file(measured), {"measured": measured, "summary": summary, "problems": lines})

    def _file(self, measured: dict[str, Any]) -> Path:
        text = json.dumps(measured, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _measured(config: RunConfig) -> dict[str, Any]:
    """All settings that decide a base's scores, as JSON holds them."""
    names = {"model", "dtype", "task", "eval", "max_completion_tokens"}
    return {**config.model_dump(mode="json", include=names), "asking": asdict(config.asking)}
