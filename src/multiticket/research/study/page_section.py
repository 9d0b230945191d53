"""What a report shows of one claim: the record that any analysis gives, and any other may give too.

A section is data and no picture: figures are numbers with labels, from which the report draws SVG, PDF and PNG in
light and dark. As JSON it can be written by any command (``model_dump_json``) and named by a study's question of
kind `record`; :func:`read_section` reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from multiticket.runs.files import write_text

Verdict = Literal["reproduced", "not reproduced", "not decided", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "not decided", "not testable here")
Row = TypeVar("Row")
Entry = str | int | float | None
"""Of a table: numbers are sorted as numbers and set to the right; None is an empty one."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(Record):
    """Values with a name, one colour each."""

    name: str
    x: list[float] | list[str]
    """Places (`chart`) or the rows' names (`intervals`)."""
    y: list[float]
    """Values; in a figure of `intervals` they lie along the horizontal axis."""
    low: list[float] | None = None
    high: list[float] | None = None
    """Ends of each value's 95 % interval, or whatever the caption says they are."""
    joined: bool = True
    """Whether a line goes through the points, in a `chart`."""

    @classmethod
    def with_ends(
        cls,
        name: str,
        x: Sequence[Any],
        y: Iterable[float],
        ends: Iterable[Sequence[float]],
        scale: float = 1,
    ) -> Series:
        """Values with the (low, high) of each, all times `scale`: 100 for shares in percent."""
        pairs = [*ends]
        low, high = ([scale * pair[side] for pair in pairs] for side in (0, 1))
        return cls(name=name, x=list(x), y=[scale * value for value in y], low=low, high=high)

    @model_validator(mode="after")
    def _same_lengths(self) -> Series:
        for values in (self.y, self.low, self.high):
            if values is not None and len(values) != len(self.x):
                raise ValueError(
                    f"the series {self.name!r} has {len(self.x)} places and {len(values)} values"
                )
        return self


class Mark(Record):
    """A line across the figure at a value of y, such as a margin; for `intervals` it stands upright."""

    at: float
    label: str


class Figure(Record):
    """A picture as data."""

    kind: Literal["intervals", "chart", "matrix"]
    """`intervals`: rows with a value and its interval. `chart`: series over x. `matrix`: values by rows and columns."""
    caption: str
    alternative: str
    """What it shows, in words, for those who cannot see it."""
    x_label: str = ""
    y_label: str = ""
    x_log: bool = False
    y_log: bool = False
    series: list[Series] = Field(default_factory=list)
    marks: list[Mark] = Field(default_factory=list)
    rows: list[str] = Field(default_factory=list)
    columns: list[str] = Field(default_factory=list)
    values: list[list[float | None]] = Field(default_factory=list)
    """Of a `matrix`: (rows, columns)."""

    @model_validator(mode="after")
    def _is_drawable(self) -> Figure:
        if self.kind == "matrix":
            if len(self.values) != len(self.rows) or any(
                len(row) != len(self.columns) for row in self.values
            ):
                raise ValueError("the values of a matrix must be as many as its rows and columns")
        elif not any(series.y for series in self.series):
            raise ValueError(f"a figure of kind {self.kind} needs a series with a value")
        return self


class Table(Record):
    """Numbers in rows; the first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[Entry]]
    folded: bool = False
    """Whether it is shown only when asked for, as the list of all runs is."""

    @classmethod
    def of(
        cls,
        caption: str,
        rows: Iterable[Row],
        columns: Mapping[str, Callable[[Row], Entry]],
        folded: bool = False,
    ) -> Table:
        """One row of the table for each of `rows`; each column says what it takes of one."""
        entries = [[take(row) for take in columns.values()] for row in rows]
        return cls(caption=caption, columns=list(columns), rows=entries, folded=folded)

    @model_validator(mode="after")
    def _same_widths(self) -> Table:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of the table {self.caption!r} has another length than its columns")
        return self


class PageSection(Record):
    """One claim and what was found."""

    name: str
    """Its anchor, of letters, digits and hyphens; figure files are named after it."""
    heading: str
    """The claim as a sentence."""
    verdict: Verdict | None = None
    """None where nothing is claimed, as for a measurement of cost."""
    answer: str
    """What was found, in a sentence or three, with the numbers that decide it."""
    n: str = ""
    """How many runs and problems it rests on."""
    command: str = ""
    """What makes it again."""
    notes: list[str] = Field(default_factory=list)
    """What to bear in mind: what is missing, what was assumed."""
    figures: list[Figure] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    numbers: dict[str, Any] = Field(default_factory=dict)
    """Everything else that was computed, for the JSON."""


def read_section(path: Path) -> PageSection:
    """A section that was kept as JSON.

    Raises:
        ValueError: the file cannot be read or is not a section; the sentence says what is wrong first.
    """
    try:
        return PageSection.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path} does not hold a report's section: {place}: {message}.") from None


def write_section(path: Path, section: PageSection) -> None:
    """Write it for `read_section`, whole or not at all."""
    write_text(path, section.model_dump_json(indent=2) + "\n")
