r"""Answers as people write them, with the verdict of a grader by hand: what the verifier must say of each."""

import pytest

from multiticket.tasks.math_answers import AnswerChecks

RIGHT = {
    "18": [
        "18", "18.", "18.0", "18.00", "+18", " 18 ", "$18", r"\$18", r"\$18.00", "€18", "**18**", "`18`",
        r"\mathbf{18}",
        r"\text{18}", r"\boxed{18}", r"\displaystyle 18", "$18$", r"\(18\)", "18 dollars", "18cm", "18 cm", "18km",
        r"18\text{ cm}", r"18 \text{ cm}^2", "18 cm^2", r"18 \, \mathrm{cm}", "18 km/h", "18 miles per hour",
        "18mph",
        r"18^\circ", r"18^{\circ}", "18°", r"18\%", "18%", "18 apples", "18 square units", "18 sq. units",
        "18 years old",
        r"18 \text{ times}", "18 times", r"18\text{ quarters}", r"18\text{ more}", "x = 18", "x=18",
        "n = 18", "f(3) = 18",
        r"\text{Total} = 18", "Total = 18", "Total: 18", r"\text{Total: }18", r"A = 18 \text{ cm}^2",
        r"3 \cdot 6 = 18",
        r"x = \frac{36}{2} = 18", r"\frac{36}{2}", "36/2", r"2 \times 9", "9 * 2", "3^2 + 9", r"\sqrt{324}",
        "{18}", "(18)",
        r"17.6 \approx 18",
    ],
    "1234": [
        "1,234", "1{,}234", r"1,\!234", "1234.0", "$1,234.00", r"1.234 \times 10^3",
        r"1.234 \text{ thousand}",
    ],
    "18000000": ["18 million", r"18 \text{ million}", "18 million people", r"18 \times 10^6", "18,000,000"],
    "48": ["4 dozen", r"4 \text{ dozen eggs}"],
    "-5": ["-5", "−5", "-$5", r"-\frac{10}{2}", "x = -5"],
    r"\frac{1}{2}": [
        "1/2", "0.5", ".5", r"\frac12", r"\dfrac{1}{2}", r"\tfrac{2}{4}", r"50\%", r"2^{-1}",
        r"\frac{1}{2} \text{ cup}",
    ],
    r"\frac{1}{3}": ["0.333333", r"\frac{2}{6}", "1/3", r"33.333333\%"],
    r"2\frac{1}{2}": ["2.5", r"\frac{5}{2}", r"2\frac12", "5/2"],
    r"\sqrt{2}": [
        r"2^{1/2}", r"\frac{2}{\sqrt{2}}", r"\sqrt2", "1.41421356", r"\sqrt{2} \approx 1.41",
        r"x = \sqrt{2} \approx 1.414",
    ],
    r"2\sqrt{3}": [r"\sqrt{12}", r"\sqrt{3} \cdot 2", r"\frac{6}{\sqrt{3}}", r"2\sqrt{3} \text{ cm}"],
    r"\frac{\pi}{4}": [r"\pi/4", r"0.25\pi", r"\frac{1}{4}\pi", r"\frac{\pi}{4} \text{ radians}"],
    r"\frac{1}{2^{99}}": [r"2^{-99}", r"\frac{1}{2^{99}}", r"\left(\frac{1}{2}\right)^{99}", r"\frac{2}{2^{100}}"],
    "0.0000001": ["10^{-7}", r"1 \times 10^{-7}", ".0000001"],
    "2516_8": ["2516_8", "2516_{8}", r"2516_{\text{eight}}", "2516"],
    "1358": ["2516_8"],
    r"\text{odd}": ["odd", "Odd", r"\text{odd}", r"\text{Odd}", r"\textbf{odd}", "odd."],
    r"\text{Yes}": ["Yes", "yes", r"\text{yes}", "YES"],
    r"\text{No}": ["No", "no", r"\text{ no }"],
    r"\text{A,B}": ["A,B", "A, B", r"\text{A, B}", "B, A", r"\text{A and B}"],
    r"\text{(C)}": ["C", "(C)", r"\text{C}", r"\textbf{(C)}", r"\mathrm{C}"],
    "C": ["(C)", r"\text{C}", "C."],
    r"\text{Evelyn}": ["Evelyn", "evelyn", r"\mbox{Evelyn}"],
    r"\text{4:30 p.m.}": ["4:30 p.m.", r"\text{4:30 p.m.}"],
    "-2,1": [
        r"x = -2 \text{ or } x = 1", r"-2 \text{ or } 1", "-2 or 1", "1, -2", "-2 and 1", r"\{-2, 1\}",
        "x = -2, x = 1",
        r"-2 \text{ and } 1", "x=1 or x=-2",
    ],
    r"\sqrt{2}, -\sqrt{2}": [r"\pm\sqrt{2}", r"\sqrt{2} \text{ or } -\sqrt{2}", r"x = \pm \sqrt{2}"],
    r"\{1,2,3\}": ["1, 2, 3", r"\{3,2,1\}", r"\left\{1, 2, 3\right\}", "1, 2, and 3"],
    "(1,2)": [r"\left(1, 2\right)", "(1, 2)", r"(1.0, \frac{4}{2})", "(x,y) = (1,2)"],
    "[2,5)": ["[2, 5)", r"2 \le x < 5", r"5 > x \geq 2", r"x \in [2,5)", r"\left[2, 5\right)"],
    r"(-\infty,2)\cup(3,\infty)": [r"x < 2 \text{ or } x > 3", "x<2 or x>3", r"(3,\infty) \cup (-\infty,2)"],
    r"x \ge 2": [r"[2, \infty)", r"2 \leq x", "x>=2"],
    "x^2+2x+1": ["(x+1)^2", "1 + 2x + x^2", "y = (x+1)^2"],
    "y=2x+1": ["2x+1", "y = 1 + 2x", "2x - y + 1 = 0"],
    "3+4i": ["4i + 3"],
    r"\begin{pmatrix}1\\2\end{pmatrix}": [
        r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}",
    ],
    "90^\\circ": ["90", r"90 \text{ degrees}", "90°"],
    r"18 \text{ cm}": ["18", "18 cm", "18 centimeters"],
    r"10\%": ["10", "0.1", r"\frac{1}{10}"],
    "3:4": ["3:4", "3 : 4"],
}  # fmt: skip
WRONG = {
    "18": [
        "", "19", "-18", "1.8", "180", "18 or 19", r"18 \text{ or } 19", r"18 \lor 19", "18?",
        "either 18 or 19", "not 18",
        r"\text{not } 18", r"\text{about } 18", "about 18", "approximately 18", "~18", r"\approx 18",
        r"18 \approx 17.6",
        "18 = 17.6", "18 = 19", "18, 19", r"18 \text{ and } 19", "18 and 19", "18; 19", r"18 \pm 1",
        "x > 18", r"x \geq 18",
        r"\geq 18", r"18 \text{ or more}", "18 or more", "at least 18", r"\text{at least } 18",
        r"\text{at most } 18",
        r"\text{more than } 18", r"\text{less than } 18", "less than 18", r"18 \text{ to } 19", "18 to 19",
        "18-19", "18+",
        r"\text{between } 18 \text{ and } 19", r"\text{maybe } 18", "maybe 18", r"18 \text{ (probably)}",
        "18 million",
        r"18 \text{ million}", "18 dozen", "18x", "18 x", r"18\pi", r"18\sqrt{2}", "18i", "18.0000001",
        "17.9999999",
        r"18 \neq 19", r"\neq 18", "18!", r"18^2", r"\frac{18}{19}", "18/19", "1,8", "18_9",
        r"18 \text{ vs } 19", r"18 \sim 19",
    ],
    r"18 \text{ cm}": ["18 m", r"18 \text{ inches}", "19 cm"],
    "1234": ["1.234", "1,235", "12,34", "1234000"],
    "0.0000001": ["0.0000004", "0", "0.000001", "10^{-8}"],
    r"\frac{1}{2^{99}}": [r"\frac{1}{2^{98}}", "2^{-98}", "0", r"2^{99}"],
    r"\frac{1}{2004!}": [r"\frac{1}{2006!}", "0"],
    "10^{20}": ["10^{20}+1", "100000000000000000001"],
    r"\frac{1}{3}": ["0.33", "0.3", r"\frac{1}{4}", "0.333334", "3"],
    r"\sqrt{2}": [
        "1.41", "1.5", "2", r"\sqrt{2} \approx 1.5", r"-\sqrt{2}", r"\pm\sqrt{2}",
        r"\sqrt{2} \text{ or } -\sqrt{2}",
    ],
    r"\frac{\pi}{4}": [r"\frac{\pi}{2}", "0.785", r"\frac{4}{\pi}"],
    "2516_8": ["2516_9", "2516_{10}", "1358", "2517_8", r"2516_{\text{nine}}"],
    "204_5": ["204_6", "54"],
    r"\text{odd}": ["even", "dod", "neither", r"\text{odd or even}", "not odd", "ddo"],
    r"\text{Yes}": ["No", r"\text{No}", "Yes or no", "sey"],
    r"\text{A,B}": ["A", "A,C", "A,B,C", "AB"],
    r"\text{(C)}": ["B", "A or C", "c or d", r"\text{(B)}"],
    r"\text{Evelyn}": ["Bob", "Evelyn or Bob", "Eve", "Eevlyn"],
    "-2,1": ["-2", "1", r"x = -2 \text{ or } x = 2", "-2, 1, 3", "2, 1", "-2 or 1 or 3", "(-2)(1)"],
    r"\{1,2,3\}": ["1, 2", "(1,2,3)", "1, 2, 3, 4", r"\{1,2\}"],
    "(1,2)": ["(2,1)", "1 or 2", r"\{1,2\}", "(1,3)", "1.2"],
    "[2,5)": ["(2,5)", "[2,5]", r"2 < x < 5", r"2 \le x \le 5", r"x \ge 2"],
    r"(-\infty,2)\cup(3,\infty)": [r"x < 2 \text{ or } x \ge 3", "x<2", "x<2 or x>4", r"(2,3)"],
    "x^2+2x+1": ["x^2+2x+2", "(x-1)^2", "x^2+1", "(y+1)^2"],
    "y=2x+1": ["y=2x-1", "2x", "y=x+1", "2x - y + 2 = 0"],
    "2 = 2": ["3 = 3"],
    "f(2) = 3, f(3) = 4": ["f(2) = 3, f(3) = 5"],
    "3+4i": ["3-4i", "7", "5"],
    "p-q": ["p+q", "q-p"],
    r"\begin{pmatrix}1\\2\end{pmatrix}": [r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"],
    "3:4": ["4:3", "3:5"],
}  # fmt: skip


@pytest.fixture(scope="module")
def checks() -> AnswerChecks:
    return AnswerChecks()


@pytest.mark.parametrize(("reference", "answer"), [(r, a) for r, answers in RIGHT.items() for a in answers])
def test_right(checks: AnswerChecks, reference: str, answer: str) -> None:
    assert checks.equal(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), [(r, a) for r, answers in WRONG.items() for a in answers])
def test_wrong(checks: AnswerChecks, reference: str, answer: str) -> None:
    assert not checks.equal(reference, answer)
