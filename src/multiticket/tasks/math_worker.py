"""The process that asks math-verify whether two answers are equal: `python -m multiticket.tasks.math_worker`.

One request a line on its input, `{"expected": ..., "given": ..., "cpu_s": ...}`, one reply a line on its output,
`{"equal": true}` or `{"error": "MemoryError"}`; to `{"value": ..., "cpu_s": ...}` it replies `{"value": "1.41421"}`.
It dies of a request that takes longer than `cpu_s` of processor time, whatever it is in the middle of, also when nobody
is left to kill it: the signal keeps its default action, which needs no cooperation of the interpreter. Its memory is
bounded too.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

LARGEST_MEMORY = 3 * 2**30
"""Bytes of address space."""


def main() -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what a library prints is no reply
    _bound_memory()
    equal("2", "\\frac{4}{2}")  # builds the parser's tables, once
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _bound_time(request["cpu_s"])
        answer: dict[str, object]
        try:
            if "value" in request:
                answer = {"value": value(request["value"])}
            else:
                answer = {"equal": equal(request["expected"], request["given"])}
        except BaseException as error:
            answer = {"error": type(error).__name__}
        _bound_time(0)
        _reply(replies, answer)


def equal(expected: str, given: str) -> bool:
    r"""math-verify's judgement of two answers, each read as the content of a `\boxed{}`. Takes any time.

    Its "equal" is held to exact values (`exactness`).
    """
    from math_verify import verify

    from multiticket.tasks import exactness

    one, other = _parsed(expected), _parsed(given)
    if not verify(one, other, timeout_seconds=None):
        return False
    return not (one and other and exactness.differ(one[0], other[0]))


def value(answer: str) -> str | None:
    """The decimal value of an answer without variables; None where it has none."""
    from multiticket.tasks import exactness

    parsed = _parsed(answer)
    return exactness.value(parsed[0]) if parsed else None


def _parsed(answer: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    kind = [LatexExtractionConfig(boxed_match_priority=0)]
    # no timeouts of its own: they end in an exception that some of its handlers swallow
    found: list[Any] = parse(f"\\boxed{{{answer}}}", extraction_config=kind, parsing_timeout=None)
    return found


def _reply(replies: object, answer: dict[str, object]) -> None:
    print(json.dumps(answer), file=replies, flush=True)  # type: ignore[call-overload]


def _bound_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, LARGEST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # a system without such limits
        pass


def _bound_time(seconds: float) -> None:
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    main()
