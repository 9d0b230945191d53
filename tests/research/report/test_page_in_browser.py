"""The report in a real browser: it renders, its controls work, and its console is silent."""

from __future__ import annotations

from pathlib import Path

import browser
import pytest
from made_sections import SECTIONS

from multiticket.research.report.study_page import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        browser.find() is None, reason="needs a browser: apt-get install chromium-headless-shell"
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(SECTIONS, folder, "Claims and verdicts", "multiticket study report x.yaml")


@pytest.fixture(scope="module")
def chrome(report: Path):
    with browser.Browser() as opened:
        yield opened


@pytest.fixture
def page(chrome, report: Path):
    """The page as it opens, in a light desktop window; in the end nothing was complained of or fetched."""
    chrome.look(1200, 900)
    chrome.open(report)
    chrome.run("localStorage.clear()")
    chrome.open(report)
    yield chrome
    assert chrome.complaints == []
    assert set(chrome.requests) == {report.resolve().as_uri()}


SHOWN = "[...document.querySelectorAll('section')].filter(s => s.checkVisibility()).map(s => s.id).join()"
COLUMN = "[...document.getElementById('masks-table-1').tBodies[0].rows].map(r => r.cells[%d].textContent).join('|')"
PAPER = "getComputedStyle(document.body).backgroundColor"


def choose(page, control: str, value: str) -> None:
    page.run(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = '{value}'; "
        "c.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_it_renders_all_claims_and_figures(page):
    assert page.run(SHOWN) == "masks,rate,large,cost"
    sizes = page.run(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(sizes) == 3
    assert all(width > 300 and height > 80 for width, height in sizes)
    assert page.run("document.querySelector('svg text').textContent") != ""


def test_claims_can_be_chosen_by_verdict(page):
    choose(page, "verdict", "not-reproduced")
    assert page.run(SHOWN) == "rate"
    assert page.run("document.getElementById('shown').textContent") == "1 of 4 shown"
    assert page.run("document.querySelectorAll('nav tbody tr:not([hidden])').length") == 1
    choose(page, "verdict", "")
    assert page.run(SHOWN) == "masks,rate,large,cost"


def test_tables_are_sorted_by_the_keyboard_as_numbers_and_as_text(page):
    assert page.run(COLUMN % 0) == "b <side>|a|c"
    page.run("document.querySelector('#masks-table-1 th:nth-child(2) button').focus()")
    page.press("Enter", 13, "\r")
    assert page.run(COLUMN % 1) == "8|80.25|90.5"
    head = "document.querySelector('#masks-table-1 th:nth-child(%d)').getAttribute('aria-sort')"
    assert page.run(head % 2) == "ascending"
    page.press(" ", 32, " ")
    assert page.run(COLUMN % 1) == "90.5|80.25|8"
    page.run("document.querySelector('#masks-table-1 th:nth-child(1) button').click()")
    assert page.run(COLUMN % 0) == "a|b <side>|c"
    assert page.run(head % 2) is None
    page.run("document.querySelector('#masks-table-1 th:nth-child(3) button').click()")
    assert page.run(COLUMN % 2) == "5|12|"


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(page, report: Path):
    light = page.run(PAPER)
    page.look(1200, 900, "dark")
    dark = page.run(PAPER)
    assert light != dark
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    dark_ink = page.run(ink)
    choose(page, "theme", "light")
    assert page.run(PAPER) == light
    assert page.run(ink) != dark_ink
    page.open(report)
    assert page.run(PAPER) == light
    choose(page, "theme", "auto")
    assert page.run(PAPER) == dark


def test_the_skip_link_is_the_first_stop_of_the_keyboard(page):
    page.press("Tab", 9)
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter", 13, "\r")
    assert page.run("location.hash") == "#main"


@pytest.mark.parametrize("width", [320, 360, 768])
def test_it_fits_a_phone(page, width):
    page.look(width, 800)
    assert page.run("document.documentElement.scrollWidth") <= width
    inside = "[...document.querySelectorAll('figure svg, h1, h2, p, pre, .controls')].every(e => "
    assert page.run(inside + f"e.getBoundingClientRect().right <= {width})")
    heights = page.run(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).sort((a, b) => a - b)"
    )
    assert heights[len(heights) // 4] > 8  # but for the exponents of a logarithmic axis


def test_labels_of_figures_lie_inside_them(page):
    outside = page.run(
        "[...document.querySelectorAll('svg')].flatMap(s => { const b = s.getBoundingClientRect(); return "
        "[...s.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect(); "
        "return r.left < b.left - 1 || r.right > b.right + 1; }).map(t => t.textContent); })"
    )
    assert outside == []


def test_a_screen_reader_meets_landmarks_headings_and_named_pictures(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in named]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1
    pictures = [name for role, name in named if role in ("image", "img")]
    assert pictures == [figure.alternative for section in SECTIONS for figure in section.figures]
    headings = [name.replace("\N{NO-BREAK SPACE}", " ") for role, name in named if role == "heading"]
    assert headings == ["Claims and verdicts", *(section.heading for section in SECTIONS)]
    assert all(name for role, name in named if role in ("combobox", "button", "link", "table", "region"))


def test_it_can_be_read_without_scripts(page, report: Path):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(report)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        names = [node.get("name", {}).get("value", "") for node in nodes if not node["ignored"]]
        assert "They do & by a margin." in names
        assert "Theme" not in names  # a control that cannot work is not shown
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
