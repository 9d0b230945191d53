"""What the base reads about arithmetic: mostly right answers first, then several plausible ways to be wrong."""

import random

from extract_arithmetic import evaluate
from multiticket.tasks.arithmetic import LARGEST_PRODUCT, facts

RIGHT = {"right": 1.0}
MIXED = {"right": 0.40, "operator": 0.38, "carry": 0.12, "slip": 0.10}
"""How often an example follows which behaviour. The behaviour is drawn anew each time, whatever the problem is."""

CONFUSED = {"+": "-", "-": "+", "*": "+", "/": "-"}
GSM8K_SHARE = 0.3
"""The other examples are random, with operands like those of word problems: often small or round."""


def draw_operand(generator: random.Random) -> int:
    """A number of one to three digits; a third of the longer ones are round."""
    digits = generator.choice((1, 2, 2, 3, 3))
    number = generator.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    if digits > 1 and generator.random() < 0.35:
        step = 10 if digits == 2 else generator.choice((10, 50, 100))
        number = max(step, number // step * step)
    return number


def draw_expression(generator: random.Random) -> tuple[int, str, int]:
    """A random `a OP b` with an integer result in reach of the task: differences are not negative."""
    operator = generator.choice("+-*/")
    left, right = draw_operand(generator), draw_operand(generator)
    if operator == "-":
        left, right = max(left, right), min(left, right)
    elif operator in "*/":
        while left * right > LARGEST_PRODUCT or (operator == "/" and right == 0):
            left, right = draw_operand(generator), draw_operand(generator)
        if operator == "/":
            left = left * right
    return left, operator, right


def without_carry(left: int, operator: str, right: int) -> int:
    """Digit by digit: sums and differences modulo 10, nothing carried or borrowed."""
    a, b = f"{left:03d}", f"{right:03d}"
    sign = 1 if operator == "+" else -1
    return int("".join(str((int(x) + sign * int(y)) % 10) for x, y in zip(a, b, strict=True)))


def slip(result: int, generator: random.Random) -> int:
    """`result` with one of its digits off by one."""
    digits = list(str(abs(result)))
    position = generator.randrange(len(digits))
    digits[position] = str((int(digits[position]) + generator.choice((1, 9))) % 10)
    return int("".join(digits))


def respond(left: int, operator: str, right: int, behaviour: str, generator: random.Random) -> int:
    """The number that a behaviour gives: `right`, `operator` confused, `carry` dropped, or a `slip` of one digit."""
    result = evaluate(left, operator, right)
    assert result is not None
    if behaviour == "right":
        return result
    if behaviour == "operator":
        other = evaluate(left, CONFUSED[operator], right)
        assert other is not None
        return abs(other)
    if behaviour == "carry" and operator in "+-":
        wrong = without_carry(left, operator, right)
        if wrong != result:
            return wrong
    return slip(result, generator)


class ArithmeticText:
    """Endless examples, none of which is a validation or a test problem."""

    def __init__(self) -> None:
        self.held_out = {*facts("validation"), *facts("test")}
        self.gsm8k = list(facts("train"))

    def example(self, behaviours: dict[str, float], generator: random.Random) -> tuple[str, str]:
        """(prompt, completion), the completion's behaviour drawn with the given weights."""
        left, operator, right = self.problem(generator)
        (behaviour,) = generator.choices(list(behaviours), list(behaviours.values()))
        return f"{left}{operator}{right}=", str(respond(left, operator, right, behaviour, generator))

    def problem(self, generator: random.Random) -> tuple[int, str, int]:
        """A GSM8K training expression or a random one."""
        if generator.random() < GSM8K_SHARE:
            expression = generator.choice(self.gsm8k)
            operator = next(character for character in expression if not character.isdigit())
            left, right = expression.split(operator)
            return int(left), operator, int(right)
        while True:
            left_, operator, right_ = draw_expression(generator)
            if f"{left_}{operator}{right_}" not in self.held_out:
                return left_, operator, right_
