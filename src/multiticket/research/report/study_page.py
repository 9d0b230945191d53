"""Write the report of a study: the page, its figures as files, and the same data as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multiticket import __version__
from multiticket.research.report.figures import files_of, inline_svg
from multiticket.research.report.page import page
from multiticket.research.study.page_section import PageSection
from multiticket.runs.files import write_json, write_text
from multiticket.runs.folder import read_json
from multiticket.ticket.atomic import replacing

PAGE, DATA, FIGURES = "index.html", "report.json", "figures"


def write_report(sections: Sequence[PageSection], folder: Path, title: str, command: str) -> Path:
    """Write ``index.html``, ``report.json`` and ``figures/NAME-1.svg`` (``.pdf``, ``.png``), each whole or not at all.

    The page comes last, so that what it names is there. The same sections give the same bytes.

    Args:
        command: what makes the report again, to print in it.

    Returns:
        the page.

    Raises:
        ValueError: two sections have one name.
    """
    names = [section.name for section in sections]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two sections of the report are named {twice[0]!r}: give them different names.")
    pictures: dict[str, list[tuple[str, str]]] = {}
    for section in sections:
        for number, figure in enumerate(section.figures, start=1):
            name = f"{section.name}-{number}"
            drawn = files_of(figure, name)
            for ending, content in drawn.items():
                (folder / FIGURES).mkdir(parents=True, exist_ok=True)
                with replacing(folder / FIGURES / f"{name}.{ending}") as file:
                    file.write(content)
            element = inline_svg(drawn["svg"], name, figure.alternative)
            pictures.setdefault(section.name, []).append((element, f"{FIGURES}/{name}"))
    data = {
        "title": title,
        "command": command,
        "version": __version__,
        "sections": [section.model_dump(mode="json") for section in sections],
    }
    write_json(folder / DATA, data)
    path = folder / PAGE
    write_text(path, page(sections, pictures, title, command, __version__))
    return path


def redraw(folder: Path) -> tuple[list[PageSection], Path]:
    """Draw a report's page and figures again from its ``report.json``.

    Returns:
        the sections, and the page.

    Raises:
        ValueError: there is no such file, or it holds no report.
    """
    data = read_json(folder / DATA)
    try:
        sections = [PageSection.model_validate(section) for section in data["sections"]]
        title, command = str(data["title"]), str(data["command"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / DATA} is not a study's report.") from None
    return sections, write_report(sections, folder, title, command)
