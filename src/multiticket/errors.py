"""What other libraries' errors say, as whole sentences of ours."""

from __future__ import annotations

import os
import re
from types import TracebackType

_OFFLINE = (
    "couldn't connect",
    "offline mode",
    "outgoing traffic",
    "connection error",
    "max retries",
    "locate the file",
)
"""How transformers and huggingface_hub put it that the hub does not answer, or is not to be asked."""


class StopNow(BaseException):
    """Raised where work can be given up at once, with the signal that asked for it, if there was one.

    No score function may catch it by accident.
    """


def first_sentence(error: BaseException) -> str:
    """The first whole sentence of an error, without its stop, so that it can end a sentence of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = re.match(r".*?[.!?](?=\s|$)", text)
    return (found[0] if found else text).rstrip(".!?: ")


def why_not_loaded(error: BaseException) -> str:
    """Why a model or tokenizer could not be loaded, to end a sentence: the hub's silence in few words."""
    said = str(error).lower()
    if any(words in said for words in _OFFLINE):
        asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        why = "HF_HUB_OFFLINE keeps this process offline" if asked else "the hub cannot be reached"
        return f"it is not in the local cache, and {why}"
    return f"the reason given was: {first_sentence(error)}"


def raised_by(trace: TracebackType | None, *programs: str) -> bool:
    """Whether the innermost frame is in one of these packages: an error from a library's depths is a bug to see."""
    name = ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name.split(".")[0] in programs
