"""Rebuilds the arithmetic task's facts from GSM8K: `python tools/extract_arithmetic.py --gsm8k FOLDER`.

GSM8K's solutions carry calculator annotations, `<<48/2=24>>`. What is kept is the bare expression and its result, never
a word of a problem. Source: github.com/openai/grade-school-math (MIT licence), also `openai/gsm8k` on Hugging Face.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "src" / "multiticket" / "tasks" / "data"

HEADER = """\
# Calculator expressions that occur in the solutions of GSM8K's {split} split; facts only, one a line.
# Source: openai/grade-school-math (MIT licence, Copyright (c) 2021 OpenAI).
# Made by: python tools/extract_arithmetic.py
"""

ANNOTATION = re.compile(r"<<([^<>]*)>>")
EXPRESSION = re.compile(r"(\d{1,3})([-+*/])(\d{1,3})=(-?)(\d+)(\.\d*)?", re.ASCII)


def evaluate(left: int, operator: str, right: int) -> int | None:
    """The integer value of `left operator right`, or None where there is none."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left // right if right and left % right == 0 else None


def expressions(solutions: Iterable[str]) -> tuple[dict[str, int], set[str]]:
    """Finds `a OP b`, two non-negative integers of at most three digits, in the annotations of `solutions`.

    Returns (facts, seen). `facts` are those whose result is written as a plain integer (-5 too) and is right;
    `seen` has also those written in any other way (`4*4=16.00`, `3/2=1.5`): another split must not contain them.
    """
    facts: dict[str, int] = {}
    seen: set[str] = set()
    for solution in solutions:
        for annotation in ANNOTATION.findall(solution):
            match = EXPRESSION.fullmatch(annotation.replace(" ", ""))
            if match is None:
                continue
            left, operator, right, sign, whole, fraction = match.groups()
            expression = f"{int(left)}{operator}{int(right)}"
            seen.add(expression)
            if fraction is None and evaluate(int(left), operator, int(right)) == int(sign + whole):
                facts[expression] = int(sign + whole)
    return facts, seen


def read_solutions(folder: Path | None, split: str) -> list[str]:
    """The solutions of a split, from FOLDER/{split}.jsonl or, without a folder, through the `datasets` library."""
    if folder is None:
        import datasets

        return list(datasets.load_dataset("openai/gsm8k", "main", split=split)["answer"])
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: give the folder that holds GSM8K's train.jsonl and test.jsonl."
        )
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def write_facts(path: Path, split: str, facts: dict[str, int]) -> None:
    """Writes `expression=result` lines, sorted, behind the header that names the source."""
    lines = [f"{expression}={result}\n" for expression, result in sorted(facts.items())]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(HEADER.format(split=split) + "".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--gsm8k", type=Path, help="folder with train.jsonl and test.jsonl (default: download)"
    )
    parser.add_argument("--output", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    train, _ = expressions(read_solutions(arguments.gsm8k, "train"))
    test, seen_in_test = expressions(read_solutions(arguments.gsm8k, "test"))
    kept = {expression: result for expression, result in train.items() if expression not in seen_in_test}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_facts(arguments.output / "arithmetic_train.txt", "train", kept)
    write_facts(arguments.output / "arithmetic_test.txt", "test", test)
    print(
        f"train: {len(train)} unique expressions, {len(kept)} after removing those that occur in the test split"
    )
    print(
        f"test: {len(test)} unique expressions, of which {len(test.keys() & train.keys())} also occur in train"
    )


if __name__ == "__main__":
    main()
