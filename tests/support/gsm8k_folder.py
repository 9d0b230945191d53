"""Where the original files of GSM8K lie: MULTITICKET_GSM8K, or shared/data/gsm8k beside or above the repository."""

from __future__ import annotations

import os
from pathlib import Path

_ABOVE = [parent / "shared" / "data" / "gsm8k" for parent in Path(__file__).resolve().parents[2:5]]
_PLACES = [Path(os.environ["MULTITICKET_GSM8K"])] if os.environ.get("MULTITICKET_GSM8K") else _ABOVE
GSM8K = next((place for place in _PLACES if (place / "train.jsonl").is_file()), None)
NO_GSM8K = "needs GSM8K: set MULTITICKET_GSM8K to a folder with train.jsonl and test.jsonl"
