"""Disks that are full and folders that cannot be written, in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from multiticket.runs.folder import RunFolder

_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
}
_TORCH_SAYS = ("PytorchStreamWriter", "file write failed", "unexpected pos")
"""How torch.save puts a failed write; it keeps no error number."""


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Turn a failure to write below a run's folder into a ValueError that says what happened and how to go on."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None or not _below(folder, error):
            raise
        step = folder.checkpoints.last()
        left = (
            f"the checkpoint of step {step} is kept"
            if step is not None
            else "there is no checkpoint yet, so it will start from the beginning"
        )
        raise ValueError(
            f"Cannot write the run in {folder.path}: {reason}; free some space or make the folder writable, "
            f"then continue with --resume ({left})."
        ) from error


def _below(folder: RunFolder, error: BaseException) -> bool:
    """Whether the file is the run's own, as far as one is named."""
    name = getattr(error, "filename", None)
    return not isinstance(name, str) or Path(name).resolve().is_relative_to(folder.path.resolve())


def _reason(error: BaseException) -> str | None:
    """What the system said, where the disk is to blame; None: something else went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, SafetensorError) and "os error" in text.lower():
        return " ".join(text.split())
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_SAYS):
        return "a file could not be written whole"
    return None
