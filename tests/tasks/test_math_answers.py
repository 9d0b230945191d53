r"""Equality of answers, in the process and by math-verify, and what cannot fool or hang it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multiticket.tasks import math_checker
from multiticket.tasks.math_answers import AnswerChecks, _judge_here

EQUAL = [
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("0.5", "1/2"),
    ("1/2", "0.5"),
    ("18", "$18"),
    ("18", r"\$18.00"),
    ("18", "18.0"),
    ("50", r"50\%"),
    ("0.5", r"50\%"),
    ("18", r"18\text{ cm}"),
    ("90", r"90^\circ"),
    (r"\frac{3}{4}", r"\frac34"),
    (r"\frac{3}{4}", "0.75"),
    ("[2,5)", "[2, 5)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty, 2) \cup (3, \infty)"),
    ("1,2", "2,1"),
    (r"\{1,2\}", "2, 1"),
    ("(1,2)", r"\left(1, 2\right)"),
    ("p-q", "-q+p"),
    (r"\sqrt{2}", "2^{1/2}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("5", "x=5"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]
UNEQUAL = [
    ("18", "19"),
    ("18", "18,19"),
    ("18", "18x"),
    ("1234", "1.234"),
    ("[2,5)", "(2,5)"),
    ("[2,5)", "[2,5]"),
    ("(1,2)", "(2,1)"),
    ("1,2", "1,3"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("p-q", "p+q"),
    (r"\sqrt{2}", "1.41"),
    ("x", "y"),
]
STRICTER = [
    ("18", "18 or 19"),
    ("18", r"18 \text{ or } 19"),
    ("18", "18?"),
    ("18", "not 18"),
    ("18", "the answer is 18"),
    ("18", "18 million"),
    ("18", "1" * 300_000),
    ("18", "(" * 100 + "18" + ")" * 100),
    ("18", "18\x00"),
    ("18", "18\ud800"),
]
"""What math-verify reads somehow or other, and what is no finished answer here."""


@pytest.fixture(scope="module")
def checks() -> AnswerChecks:
    return AnswerChecks()


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal_answers(checks: AnswerChecks, reference: str, answer: str) -> None:
    assert checks.equal(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), UNEQUAL + STRICTER)
def test_unequal_answers(checks: AnswerChecks, reference: str, answer: str) -> None:
    assert not checks.equal(reference, answer)
    assert checks.failures == 0


@pytest.mark.parametrize(("reference", "answer"), EQUAL + UNEQUAL)
def test_what_is_decided_without_math_verify_is_what_it_would_say(reference: str, answer: str) -> None:
    here = _judge_here(reference, answer)
    if here is not None:
        assert math_checker.remembered(reference, answer) is here


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{Evelyn}", r"\text{evelyn}", True),
        (r"\text{Evelyn}", "Bob", False),
        (r"\text{(C)}", "C", True),
        ("C", r"(\text{C})", True),
        ("C", "B", False),
        (r"2 \text{ or } 3", r"2\text{ or }3", True),
    ],
)
def test_answers_in_words(checks: AnswerChecks, reference: str, answer: str, equal: bool) -> None:
    assert checks.equal(reference, answer) is equal


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"So it is $\dfrac{5}{2}$ or $\boxed{2\frac{1}{2}}$.", r"2\frac{1}{2}", True),
        (r"So it is $\dfrac{7}{2}$ or $\boxed{2\frac{1}{2}}$.", r"2\frac{1}{2}", False),
        (r"$\boxed{18}$ or $\boxed{19}$", "19", False),
        (r"$\boxed{18}$ or $\boxed{18.0}$", "18", True),
    ],
)
def test_two_forms_of_one_answer_are_no_choice(
    checks: AnswerChecks, completion: str, reference: str, right: bool
) -> None:
    assert checks.correct(completion, reference) is right


def test_a_completion_that_cannot_be_judged_in_time_scores_nothing_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(math_checker, "CPU_S", 0.3)
    checks = AnswerChecks()
    assert not checks.correct(r"\boxed{9^{9^{9^{9}}}}", "9")
    assert checks.failures == 1
    assert checks.equal(r"\sqrt{8}", r"2\sqrt{2}")  # by the child that waited
    assert checks.failures == 1


@pytest.mark.parametrize(
    "answer",
    [
        "((9!)!)!",
        r"\frac{" * 15 + "1" + "}{2}" * 15,
        r"\sqrt{" * 15 + "2" + "}" * 15,
        "import os; os.abort()",
        "9" * 400,
        "^".join("9" * 100),
        r"\int_0^1 x^{x^{x}} dx",
        "\\" * 99,
        "$" * 99,
        "\n\r\t",
        "=" * 99,
        "\u2028\u202e18",
    ],
)
def test_hostile_answers(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_checker, "CPU_S", 0.3)
    assert not AnswerChecks().correct(r"\boxed{" + answer + "}", r"\sqrt{7}")


def test_threads_get_their_own_answers() -> None:
    checks, wrong = AnswerChecks(), []

    def ask(number: int) -> None:
        for equal in (True, False):
            if checks.equal(rf"\sqrt{{{number}}}", f"{number + (not equal)}^{{1/2}}") is not equal:
                wrong.append((number, equal))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert checks.failures == 0


def test_a_child_that_was_killed_is_replaced() -> None:
    checks = AnswerChecks()
    assert checks.equal(r"\sqrt{27}", r"3\sqrt{3}")
    for child in math_checker._checker._children:
        child.process.kill()
        child.process.wait()
    assert checks.equal(r"\sqrt{75}", r"5\sqrt{3}")
    assert checks.failures == 0


def test_the_child_dies_of_its_own_limit_when_nobody_is_left_to_kill_it() -> None:
    child = math_checker._Child()
    child.ask({"expected": "1", "given": "1", "cpu_s": 5})
    assert child.process.stdin is not None
    child.process.stdin.write(json.dumps({"expected": "9", "given": "9^{9^{9^{9}}}", "cpu_s": 0.3}) + "\n")
    child.process.stdin.flush()
    assert child.process.wait(timeout=60) != 0
    child.close()


SCRIPT = """
import time
from multiticket.tasks.math_answers import AnswerChecks
assert AnswerChecks().equal("p-q", "-q+p")
"""


def test_it_works_from_a_script_on_standard_input_in_a_folder_with_confusing_names(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "math_verify.py").write_text("raise RuntimeError")
    source = str(Path(math_checker.__file__).parents[2])
    safe = {**os.environ, "PYTHONPATH": source, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable], input=SCRIPT, text=True, cwd=tmp_path, env=safe, check=False)
    assert done.returncode == 0


def test_a_checker_that_cannot_start_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_checker, "_checker", math_checker.MathChecker())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    checks = AnswerChecks()
    assert not checks.equal("a+1", "1+a+0")
    assert checks.failures == 1
    started = time.perf_counter()
    assert not checks.equal("a+1", "1+a+0")
    assert time.perf_counter() - started < 1.0
    math_checker._checker.close()
    math_checker.remembered.cache_clear()
