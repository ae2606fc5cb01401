"""A report is one file that needs nothing else, shows text as text, and is the same for the same content."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from adm.data import png_bytes
from adm.runtime.errors import UsageError
from adm.studies._report import Column, Figure, Report, Row, Table, text_table, write_report

HOSTILE = '<script>alert("1")</script> & [bold]'
VOID = {"meta", "img", "br", "hr", "link"}


def picture(level: int) -> bytes:
    return png_bytes(np.full((6, 10, 1), level, dtype=np.uint8))


def report() -> Report:
    table = Table(
        columns=(Column("accuracy", ".1%", "higher", meaning="share <right>"), Column("recall")),
        rows=(
            Row("s = 0", (0.105, 0.82)),
            Row("s = 10", (1, None)),
            Row("held-out", (0.992, "n/a"), real=True),
        ),
        caption=HOSTILE,
    )
    figures = (
        Figure("samples", HOSTILE, picture(0), 'a "quoted" alt'),
        Figure("curve", "Curve", picture(255), "a curve"),
    )
    return Report(HOSTILE, (HOSTILE,), figures, table, {HOSTILE: HOSTILE}, ((HOSTILE, HOSTILE),), ((HOSTILE, "x"),))


class Page(HTMLParser):
    """Tags, attributes and text of a page; unbalanced tags raise."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    (path, *_) = write_report(tmp_path / "report.html", report())
    return path.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(page):
    tags = Page(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "base", "form"}
    references = [
        attributes[name] for _, attributes in tags for name in ("src", "href", "srcset") if name in attributes
    ]
    assert references and all(reference.startswith("data:image/png;base64,") for reference in references)
    assert "url(" not in page and "@import" not in page and "://" not in page
    (policy,) = [a["content"] for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_the_pictures_inside_are_those_beside_it(page, tmp_path):
    images = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    for attributes, name in zip(images, ("samples", "curve"), strict=True):
        inside = base64.b64decode(attributes["src"].partition(",")[2])
        assert inside == (tmp_path / "pictures" / f"{name}.png").read_bytes()
        assert (attributes["width"], attributes["height"]) == ("5", "3") and attributes["alt"]
    assert images[0]["alt"] == 'a "quoted" alt'


def test_markup_in_the_content_is_shown_and_not_obeyed(page):
    # title, heading, summary, highlight, figure, caption of the table, guide (2), conditions (2)
    assert Page(page).text.count(HOSTILE) == 10
    assert "<script" not in page and "share <right>" in Page(page).text


def test_the_table_is_there_with_real_data_set_apart(page):
    rows = re.findall(r"<tr(.*?)>\s*<th scope=\"row\">(.*?)</th>(.*?)</tr>", page, re.DOTALL)
    cells = [(name, re.findall(r"<td>(.*?)</td>", body)) for _, name, body in rows]
    assert cells == [
        ("s = 0", ["10.5%", "0.820"]),
        ("s = 10", ["100.0%", "-"]),
        ("held-out", ["99.2%", "n/a"]),
    ]
    assert [("real" in attributes) for attributes, _, _ in rows] == [False, False, True]


def test_equal_reports_are_equal_files(page, tmp_path):
    (path, *_) = write_report(tmp_path / "again" / "report.html", report())
    assert path.read_text(encoding="utf-8") == page


def test_the_text_table_is_aligned():
    lines = text_table(report().table).split("\n")
    assert lines[0] == "samples   accuracy  recall" and lines[2] == "s = 0        10.5%   0.820"
    assert len({len(line) for line in lines}) == 1


def test_what_cannot_be_shown_is_refused(tmp_path):
    whole = report()
    twice = replace(whole, figures=(whole.figures[0], whole.figures[0]))
    with pytest.raises(UsageError, match="share a file"):
        write_report(tmp_path / "a.html", twice)
    with pytest.raises(UsageError, match="1 values for 2 columns"):
        Table((Column("a"), Column("b")), (Row("x", (1,)),))
    with pytest.raises(UsageError, match="not a PNG"):
        write_report(tmp_path / "b.html", replace(whole, figures=(Figure("x", "x", b"GIF89a", "x"),)))
