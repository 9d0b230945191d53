"""Answers between `<alphabetical_sorted>` tags: writing them, reading them, comparing two of them.

Scoring follows the `alphabet-sort` environment of the verifiers library: the last complete block counts, one name a
line; the reward is the difflib ratio of the two lists, lower-cased, to the 4th power.
"""

import difflib
import itertools

OPEN, CLOSE = "<alphabetical_sorted>", "</alphabetical_sorted>"
POWER = 4
LONGEST_BLOCK = 2000
"""Characters. difflib takes quadratic time, so a longer block is not an answer: it reads as no names."""


def wrap(names: list[str]) -> str:
    """The block that holds `names`, one a line."""
    return "\n".join([OPEN, *names, CLOSE])


def read(text: str) -> list[str]:
    """The names in the last complete block of `text`, stripped, empty lines left out; [] where there is no block.

    A block is what lies between a closing tag and the opening tag nearest before it. Linear in the length of `text`.
    """
    if not isinstance(text, str):
        return []
    end = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, end) if end >= 0 else -1
    if start < 0:
        return []
    block = text[start + len(OPEN) : end]
    if len(block) > LONGEST_BLOCK:
        return []
    return [line.strip() for line in block.splitlines() if line.strip()]


def similarity(completion: str, answer: str) -> float:
    """difflib's ratio of the two blocks, lower-cased, to the 4th power: 1.0 for equal lists, 0.0 without a block."""
    return _ratio(read(completion), read(answer)) ** POWER


MOST_BLOCKS = 8
"""More blocks in one answer are no attempts to answer: they score nothing."""


def blocks(text: str, tag: str) -> list[list[str]]:
    """The names of every `<tag>...</tag>` in `text`, in order, as `read` gives them; [] where a block is too long."""
    found: list[list[str]] = []
    opening, closing, place = f"<{tag}>", f"</{tag}>", 0
    while isinstance(text, str) and len(found) <= MOST_BLOCKS:
        start = text.find(opening, place)
        end = text.find(closing, start + len(opening)) if start >= 0 else -1
        if end < 0:
            break
        block = text[start + len(opening) : end]
        found.append(
            [line.strip() for line in block.split("\n") if line.strip()]
            if len(block) <= LONGEST_BLOCK
            else []
        )
        place = end + len(closing)
    return found


def best_attempt(text: str, expected: list[str], tag: str) -> float:
    """The last block's similarity to `expected`, and 0 unless every block is better than the one before it."""
    attempts = [_ratio(given, expected) ** POWER for given in blocks(text, tag)]
    improved = all(later > earlier for earlier, later in itertools.pairwise(attempts))
    return attempts[-1] if attempts and improved and len(attempts) <= MOST_BLOCKS else 0.0


def _ratio(given: list[str], expected: list[str]) -> float:
    if not given or not expected:
        return 0.0
    return difflib.SequenceMatcher(None, "\n".join(given).lower(), "\n".join(expected).lower()).ratio()
