"""What the base reads about sorting names: the right order first, then several other orders too."""

import random

from multiticket.tasks.alphabet_sort import (
    NAMES_PER_PROBLEM,
    AlphabetSort,
    make_prompt,
    name_pool,
    sort_names,
)
from multiticket.tasks.sorted_tags import wrap

RIGHT = {"right": 1.0}
MIXED = {"right": 0.28, "other": 0.34, "given": 0.22, "reversed": 0.16}
"""How often an example follows which behaviour. One in six problems is in the right order as given or by the other
name, so the right answer comes somewhat more often than `right`."""

REMIXED = {"right": 0.34, "other": 0.1, "given": 0.32, "reversed": 0.24}
"""What the last phase makes of it. `MIXED` alone leaves a base that minds the wrong name about as often as the right
one, and reinforcement of every arm then ends at sorting all problems by the first name, right for half of them."""

POOL_SHARE = 0.5
"""The other names are random letters, so that sorting goes by letters and holds for names never seen."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_word(letters: str, generator: random.Random) -> str:
    """A capital and one to three small letters, out of `letters`."""
    return "".join(generator.choices(letters, k=generator.choice((2, 3, 4, 4)))).capitalize()


def random_words(generator: random.Random) -> list[str]:
    """Different random words; often over few letters, so that they share beginnings."""
    few = generator.random() < 0.3
    letters = "".join(generator.sample(LETTERS, 5)) if few else LETTERS
    words: set[str] = set()
    while len(words) < NAMES_PER_PROBLEM:
        words.add(random_word(letters, generator))
    return generator.sample(sorted(words), NAMES_PER_PROBLEM)


def order(names: list[str], by: str, behaviour: str) -> list[str]:
    """The order that a behaviour gives: `right`, by the `other` name, as `given`, or `reversed`."""
    if behaviour == "given":
        return names
    if behaviour == "other":
        by = "LAST" if by == "FIRST" else "FIRST"
    ordered = sort_names(names, by)
    return ordered[::-1] if behaviour == "reversed" else ordered


class SortingText:
    """Endless examples from the training pools and random letters, none of which is a validation problem."""

    def __init__(self) -> None:
        self.held_out = set(AlphabetSort().problems("validation")["prompt"])

    def example(self, behaviours: dict[str, float], generator: random.Random) -> tuple[str, str]:
        """(prompt, completion), the completion's behaviour drawn with the given weights."""
        while True:
            names = [
                a + b
                for a, b in zip(self.words("first", generator), self.words("last", generator), strict=True)
            ]
            by = generator.choice(("FIRST", "LAST"))
            prompt = make_prompt(names, by)
            if prompt not in self.held_out:
                break
        (behaviour,) = generator.choices(list(behaviours), list(behaviours.values()))
        return prompt, wrap(order(names, by, behaviour))

    def words(self, kind: str, generator: random.Random) -> list[str]:
        """Different first or last names, out of the training pool or of random letters."""
        if generator.random() < POOL_SHARE:
            return generator.sample(name_pool(kind, "train"), NAMES_PER_PROBLEM)
        return random_words(generator)
