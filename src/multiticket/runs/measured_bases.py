"""What bases scored before any training, kept beside the runs that begin from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from multiticket.runs.files import write_json, write_text
from multiticket.runs.folder import RunFolder, read_json


class MeasuredBases:
    """A folder with one file for each way in which a base was measured.

    For runs whose bases stay as they are: a base is known by its name, not by its weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, measured: dict[str, Any], run: RunFolder) -> bool:
        """Write what is known of the base into the folder of `run`; whether anything is.

        Args:
            measured: all that decides the scores, as JSON holds it.
        """
        kept = self._file(measured)
        if not kept.exists():
            return False
        scores = read_json(kept)
        write_text(run.problems("before"), "".join(line + "\n" for line in scores["problems"]))
        write_json(run.before, scores["summary"])
        return True

    def take(self, measured: dict[str, Any], run: RunFolder) -> None:
        """Keep what `run` has measured, for others."""
        lines = run.problems("before").read_text(encoding="utf-8").split("\n")[:-1]
        scores = {"measured": measured, "summary": read_json(run.before), "problems": lines}
        write_json(self._file(measured), scores)

    def _file(self, measured: dict[str, Any]) -> Path:
        text = json.dumps(measured, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
