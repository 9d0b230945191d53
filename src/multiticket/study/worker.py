"""``python -m multiticket.study.worker STUDY FOLDER``: one process that does a study's runs, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

from multiticket.study.grid import load
from multiticket.study.runner import work


def main() -> None:
    from multiticket.train.interrupt import RunInterrupted

    study, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        work(folder, load(study).runs)
    except RunInterrupted as interrupted:
        sys.exit(interrupted.code)


if __name__ == "__main__":
    main()
