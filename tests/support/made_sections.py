"""Sections with everything that a report can show."""

from __future__ import annotations

from multiticket.research.study.page_section import Figure, Mark, PageSection, Series, Table

INTERVALS = Figure(
    kind="intervals",
    caption="Each mask minus full.",
    alternative='Masks "A" & <B> lie within a point of full training.',
    x_label="difference, percentage points",
    series=[
        Series(name="arithmetic", x=["seed 0", "seed 1"], y=[0.3, -0.5], low=[-0.6, -1.4], high=[1.2, 0.4]),
        Series(
            name="alphabet_sort", x=["seed 0", "seed 1"], y=[-2.8, -3.1], low=[-4, -4.5], high=[-1.6, -1.7]
        ),
    ],
    marks=[Mark(at=0, label="equal"), Mark(at=-2, label="margin −2")],
)
CHART = Figure(
    kind="chart",
    caption="Rate against density.",
    alternative="The rate grows as one over the density.",
    x_label="density",
    y_label="learning rate",
    x_log=True,
    y_log=True,
    series=[
        Series(name="found", x=[0.1, 0.01, 0.001], y=[1e-3, 1e-2, 1e-1], joined=False),
        Series(name="exponent −1", x=[0.1, 0.001], y=[1e-3, 1e-1]),
    ],
)
MATRIX = Figure(
    kind="matrix",
    caption="Overlap.",
    alternative="Every pair overlaps by half a percent.",
    rows=["a", "b"],
    columns=["a", "b"],
    values=[[None, 0.005], [0.005, None]],
)
TABLE = Table(
    caption="Scores & intervals",
    columns=["side", "accuracy, %", "runs", "95 %"],
    rows=[["b <side>", 80.25, 5, "−1 to +1"], ["a", 90.5, 12, "0 to 1"], ["c", 8.0, None, ""]],
)
SECTIONS = [
    PageSection(
        name="masks",
        heading="Random 1 % masks <all> succeed.",
        verdict="reproduced",
        answer="They do & by a margin.",
        n="20 runs, 1,688 problems",
        command="multiticket study run evidence.yaml",
        notes=["One run a mask."],
        figures=[INTERVALS, MATRIX],
        tables=[TABLE, TABLE.model_copy(update={"caption": "Every run", "folded": True})],
    ),
    PageSection(
        name="rate", heading="The rate goes so.", verdict="not reproduced", answer="No.", figures=[CHART]
    ),
    PageSection(
        name="large", heading="So do large models.", verdict="not testable here", answer="Too large."
    ),
    PageSection(name="cost", heading="What a step costs", answer="A third."),
]
