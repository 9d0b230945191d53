r"""Words in and around answers: hedges, names, labels, large numbers in words, and what markup adds to a text.

`not 18`, `about 18`, `18 or more` and `18?` are no answers to a question whose answer is 18; `\text{odd}` and `odd`
are one name; `x = 18` and `Total: 18` say 18.
"""

from __future__ import annotations

import re

_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph)\s*\{([^{}]*)\}"
)
_WRAPPER = re.compile(
    r"^\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|bm|boldsymbol|boxed|fbox|underline|ensuremath|displaystyle)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}$"
)
_EMPHASIS = re.compile(r"^(\*\*|__|\*|_|`)([^*_`]+)\1$")
_SPACE = re.compile(r"\\[!,;: ]|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\q?quad(?![A-Za-z])|~|\s+")
_HEDGE = re.compile(
    r"\?|^\s*~|\\sim(?![A-Za-z])|\\neq?(?![A-Za-z])|≠"
    r"|(?<![A-Za-z\\])(?:about|approximately|approx|roughly|around|nearly|almost|close to|near|circa|maybe|perhaps|"
    r"possibly|probably|likely|presumably|i think|i guess|not|isn't|unless|between|versus|vs|at least|at most|"
    r"(?:more|less|fewer|greater|larger|smaller|higher|lower|other|rather) than|up to|or so|ish|above|below|"
    r"wrong|incorrect|unknown|unsure|cannot|can't)(?![A-Za-z])",
    re.IGNORECASE,
)
_CHOOSE = re.compile(r"(?<![A-Za-z])(?:either|or)(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])", re.IGNORECASE)
_JOIN = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\\mbox\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
    r"|\\(?:lor|vee)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_SCALE = re.compile(rf"(?<![A-Za-z])({'|'.join(SCALES)})s?(?![A-Za-z])", re.IGNORECASE)
_SCALED = re.compile(
    rf"^(.*?[0-9}}]\.?)\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALES)})s?(?![A-Za-z])([^{{}}]*)\}}?\s*$",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"^[A-Za-z][A-Za-z ]*[A-Za-z]\s*(?:[:=]|\\colon(?![A-Za-z]))\s*(?=\S)")
_TEXT_LABEL = re.compile(r"^\\(?:text|mathrm|mbox|textbf)\s*\{[^{}0-9]*[:=]\s*\}\s*(?=\S)")


def unwrapped(answer: str) -> str:
    r"""Without what stands around the whole of it: `**18**`, `\mathbf{18}`, `\text{18}`, `$18$`, a full stop."""
    before = None
    while answer != before:
        before = answer
        answer = re.sub(
            r"^\\(?:displaystyle|textstyle|large|Large|bf)(?![A-Za-z])", "", answer.strip()
        ).strip()
        for pattern, group in ((_WRAPPER, 1), (_EMPHASIS, 2)):
            found = pattern.match(answer)
            answer = found[group].strip() if found else answer
        if len(answer) > 1 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]:
            answer = answer[1:-1].strip()
        found = re.fullmatch(r"\\[(\[](.*)\\[)\]]", answer, re.DOTALL)
        answer = found[1].strip() if found else answer
        answer = re.sub(r"(?<=[^.\s])[.,;]$", "", answer)
    return answer


def in_words(answer: str) -> str:
    r"""With the contents of `\text{}` as plain words."""
    return _TEXT.sub(r" \1 ", answer)


def squeezed(answer: str) -> str:
    r"""Without what changes nothing: spaces, `\left`, `\text`, dollar signs, a full stop, the size of fractions."""
    answer = re.sub(r"\\?\$", "", _SPACE.sub("", _TEXT.sub(r"\1", answer)))
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    return answer.rstrip(".")


def hedges(answer: str) -> bool:
    """Whether an answer qualifies what it says: `about 18`, `not 18`, `18?`."""
    return _HEDGE.search(in_words(answer)) is not None


def chooses(answer: str) -> bool:
    """Whether an answer names alternatives: `18 or 19`."""
    return _CHOOSE.search(in_words(answer)) is not None


def joined_by_commas(answer: str) -> str:
    r"""`-2 \text{ or } 1` -> `-2, 1`; so with `and`."""
    return _JOIN.sub(
        ", ", re.sub(r"(?<![A-Za-z])either(?![A-Za-z])", "", answer, flags=re.IGNORECASE)
    ).strip()


def has_several_values(reference: str) -> bool:
    r"""Whether a reference is a list of values: `1,-2`, `\{1, 2\}`, `\pm 2`, `2 \text{ and } 3`."""
    if re.search(r"\\pm(?![A-Za-z])|±", reference) or _JOIN.search(reference):
        return True
    bare = re.sub(r"\s", "", re.sub(r"\\left|\\right", "", reference))
    if bare.startswith(r"\{"):
        return True
    return len(at_top(re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", bare), ",")) > 1


def at_top(text: str, mark: str) -> list[str]:
    """`text` split at the marks that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        elif character == mark and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def without_label(answer: str) -> str:
    r"""`Total: 18` -> `18`; so with `\text{Total = }18` and `Total = 18`."""
    for pattern in (_SENTENCE, _TEXT_LABEL):
        found = pattern.match(answer)
        if found:
            return answer[found.end() :].strip()
    return answer


def names_a_scale(answer: str) -> bool:
    """Whether `million`, `dozen` or the like stands in it."""
    return _SCALE.search(in_words(answer)) is not None


def scaled(answer: str) -> tuple[str, int] | None:
    r"""`1.5 \text{ million people}` -> `("1.5 people", 10**6)`; None where no such word stands behind a number."""
    found = _SCALED.match(answer)
    return (f"{found[1]} {found[3].strip()}".strip(), SCALES[found[2].lower()]) if found else None


def name_of(reference: str) -> str | None:
    r"""A reference in words, folded: `\text{Evelyn}`, `(\text{C})`, `Monday`, `\text{A, B}`; None for a formula."""
    bare = _bare(reference)
    if re.fullmatch(r"[A-Za-z(][A-Za-z ,'()-]*", bare) is None:
        return None
    letters = re.sub("[^A-Za-z]", "", bare)
    is_choice = len(letters) == 1 and letters.isupper()
    is_name = _TEXT.search(reference) is not None and "\\" not in _TEXT.sub("", reference)
    formula = _TEXT.sub("", reference)
    if (
        is_choice
        or (is_name and re.search("[A-Za-z]", formula) is None)
        or re.fullmatch("[A-Za-z][a-z]{3,}", bare)
    ):
        return folded(reference)
    return None


def folded(answer: str) -> str:
    """An answer as a name: case only where it is a single letter, lists of letters in order, no brackets."""
    bare = re.sub(r"[()]", " ", _bare(answer))
    words = [" ".join(word.split()) for word in re.split(r",|\band\b", bare)]
    words = [word for word in words if word]
    if len(words) > 1 and all(len(word) == 1 for word in words):
        return ",".join(sorted(words))
    return ",".join(word if len(word) == 1 else word.casefold() for word in words)


def _bare(answer: str) -> str:
    return (
        re.sub(r"\s+", " ", re.sub(r"\\?\$|\\[,;: !]|~", " ", _TEXT.sub(r"\1", answer)))
        .strip()
        .rstrip(".")
        .strip()
    )
