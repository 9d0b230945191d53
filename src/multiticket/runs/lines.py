"""Files of JSON lines that a run appends to and, when it is resumed, cuts back to what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class StepLines:
    """A file with one JSON object a line, each with a ``step``, in ascending order.

    A line is written whole or not at all; bytes once written are never written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add a line and have it on the disk. Where that fails (OSError), the file is as it was."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        size = self.path.stat().st_size if self.path.exists() else None
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(line)
                if written != len(line):  # the disk took a part of it: the rest says why
                    file.write(line[written:])
                os.fsync(file.fileno())
        except OSError:
            if size is not None:
                os.truncate(self.path, size)
            else:
                self.path.unlink(missing_ok=True)
            raise

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; what a killed run cut short is left out."""
        return [record for record, _ in self._whole()]

    def cut_after(self, step: int) -> None:
        """Cut the file behind the last line of `step`; what stays, stays byte for byte."""
        end = 0
        for record, upto in self._whole():
            if record["step"] > step:
                break
            end = upto
        if self.path.exists() and self.path.stat().st_size > end:
            os.truncate(self.path, end)

    def _whole(self) -> list[tuple[dict[str, Any], int]]:
        """Each record, and the offset in bytes behind its line."""
        found: list[tuple[dict[str, Any], int]] = []
        end = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict) or "step" not in record:
                break
            end += len(line)
            found.append((record, end))
        return found
