from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.report import (
    Code,
    Curves,
    Figures,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    charts,
    write_report,
)
from scripts.report.formatting import DASH, cell, column
from scripts.report.ticks import x_axis, y_axis
from tests import chromium

HOSTILE = "</title></style></text>\"'><script>document.title = 'taken'</script>"
LONG = "unbreakable" * 30
NAN, INF = math.nan, math.inf


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.jpg"
    rows, columns = np.mgrid[:120, :200]
    picture = Image.fromarray(np.stack([rows, columns, rows + columns // 2], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "the camera's owner"
    picture.save(path, exif=exif)
    return path


@pytest.fixture
def sections(photograph: Path) -> list[Section]:
    digit = np.zeros((64, 64, 3), np.uint8)
    digit[16:48, 30:34] = 255
    many = {f"method {number}": [(epoch, number + epoch / 10) for epoch in range(5)] for number in range(12)}
    return [
        Section(
            "efficientvit",
            "Image classification",
            "Trained for three epochs, measured beside a small CNN.",
            [
                Figures([("accuracy", "97.1 %", "449 images"), ("memory", 0.41, ""), ("latency", NAN, "not measured")]),
                Curves(
                    "Accuracy",
                    "epoch",
                    "accuracy",
                    {"EfficientViT-M0": [(0, 0.5), (1, 0.9), (2, 0.97)], "ResNet-18": [(0, 0.4), (1, NAN), (2, 0.96)]},
                    percent=True,
                ),
                Picture("Confusion matrix", np.full((300, 300, 3), 200, np.uint8), "Counts on the diagonal"),
                Table(
                    "Networks",
                    ["network", "accuracy", "notes"],
                    [["M0", 0.971, "ours"], ["ResNet", None, "-"]],
                    "n = 3",
                ),
                Picture("A photograph", photograph, "A gradient"),
                Pictures("Digits", [Picture("1", digit, "A handwritten 1"), Picture("one", digit, "Another one")]),
                Code("Repeat it", f"vision fit --config configs/efficientvit/demo.yaml --name {LONG}"),
            ],
        ),
        Section("vos", "Nothing yet", "A section without blocks.", []),
        Section(
            HOSTILE,
            HOSTILE + LONG,
            HOSTILE,
            [
                Text(HOSTILE),
                Figures([(HOSTILE, HOSTILE, HOSTILE), (LONG, LONG, LONG)]),
                Table(HOSTILE, [HOSTILE, LONG], [[HOSTILE, INF], [LONG, -INF], ["W" * 300, NAN]], HOSTILE),
                Curves(HOSTILE, HOSTILE, LONG, {HOSTILE: [(0, 1.0)], LONG: [(0, 2.0), (1, 3.0)]}),
                Picture(HOSTILE, digit, HOSTILE),
                Pictures(HOSTILE, [Picture(LONG, digit, HOSTILE)]),
                Code(HOSTILE, HOSTILE),
            ],
        ),
        Section(
            "vos",
            "Values at the edge",
            "A name that is there already.",
            [
                Curves("one point", "x", "y", {"a": [(3, 0.5)]}),
                Curves("nothing", "x", "y", {"a": [(NAN, 1.0), (1, INF)], "b": []}),
                Curves("no series", "x", "y", {}),
                Curves("equal", "x", "y", {"a": [(0, 7.0), (1, 7.0)]}, percent=True),
                Curves("huge", "x", "y", {"a": [(0, -1e308), (1, 1e308), (2, 1e20), (3, 5e-324)]}),
                Curves("many", "x", "y", many, y_range=(0, 2)),
                Curves("degenerate range", "x", "y", {"a": [(0, 0.0), (1, 1.0)]}, y_range=(NAN, 0)),
                Table("no rows", ["a", "b"], []),
                Pictures("no pictures", []),
            ],
        ),
    ]


@pytest.fixture
def report(sections: list[Section], tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "demo" / "report.html"
    write_report(path, f"Demo {HOSTILE}", f"What it is. {HOSTILE}", sections, {"python": "3.13", HOSTILE: HOSTILE})
    return path


def test_hostile_text_stays_text(report: Path) -> None:
    elements = Elements(report.read_text(encoding="utf-8"))
    assert not elements.all("script")
    assert len(elements.all("title")) == 1 + len(re.findall("<circle", report.read_text(encoding="utf-8")))
    assert elements.text.count("<script>document.title = 'taken'</script>") >= 15


def test_needs_nothing_outside_itself(report: Path, tmp_path: Path) -> None:
    page = report.read_text(encoding="utf-8")
    elements = Elements(page)
    loaded = [
        value or ""
        for _, attributes in elements.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
    ]
    assert loaded
    assert all(value.startswith(("data:", "#")) for value in loaded)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in page
    assert str(tmp_path) not in page


def test_anchors_are_unique_and_met(report: Path) -> None:
    elements = Elements(report.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"#efficientvit", "#vos"} < {attributes["href"] for attributes in elements.all("a")}
    assert all((attributes["href"] or "")[1:] in ids for attributes in elements.all("a"))
    labels = [attributes["aria-labelledby"] for _, attributes in elements.tags if "aria-labelledby" in attributes]
    assert set(labels) <= set(ids)


def test_anchors_of_many_alike(tmp_path: Path) -> None:
    names = ["a", "a-3", "a", "a", "systems", "a title", "a", "", "日本"]
    write_report(tmp_path / "r.html", "t", "i", [Section(name, name, name, []) for name in names], {})
    ids = [a["id"] for _, a in Elements((tmp_path / "r.html").read_text(encoding="utf-8")).tags if "id" in a]
    assert len(ids) == len(set(ids)) == 2 * len(names) + 2


def test_can_be_read_without_seeing(report: Path) -> None:
    elements = Elements(report.read_text(encoding="utf-8"))
    assert elements.all("html") == [{"lang": "en"}]
    assert all(attributes["alt"] for attributes in elements.all("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in elements.all("th"))
    assert all(a.get("aria-label") for a in elements.all("svg") if a.get("role") == "img")
    headings = [int(tag[1]) for tag, _ in elements.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}


def test_pictures_keep_their_kind_and_lose_their_metadata(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    sources = [attributes["src"] or "" for attributes in Elements(page).all("img")]
    assert [source.split(";")[0] for source in sources].count("data:image/jpeg") == 1
    assert [source.split(";")[0] for source in sources].count("data:image/png") == 5
    assert "RXhpZg" not in page  # "Exif" in base 64


def test_wrong_pictures_and_rows_are_refused(tmp_path: Path) -> None:
    wrong = Section("a", "a", "a", [Picture("a", np.zeros((4, 4), np.uint8), "a")])
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), got uint8 \(4, 4\)"):
        write_report(tmp_path / "r.html", "t", "i", [wrong], {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="row 2 has 1 cells, expected 2"):
        Table("a", ["a", "b"], [[1, 2], [1]])


def test_the_former_report_survives_an_error(report: Path) -> None:
    before = report.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_report(report, "t", "i", [Section("a", "a", "a", [Picture("a", "missing.png", "a")])], {})
    assert report.read_bytes() == before
    write_report(report, "t", "i", [], {})
    assert "No system has been run" in report.read_text(encoding="utf-8")
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", "t", "i", [Section("a", "caf\udce9", "\x00", [])], {})
    assert "caf?" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (NAN, DASH),
        (-INF, DASH),
        (2192312, "2,192,312"),
        (np.int64(12), "12"),
        (np.float32(0.5), "0.5"),
        (0.98217, "0.9822"),
        (-1.5, "\N{MINUS SIGN}1.5"),
        (0, "0"),
        (3e-7, "3e\N{MINUS SIGN}07"),
        (1e300, "1e+300"),
        (True, "yes"),
        ("as it is", "as it is"),
    ],
)
def test_cells(value: str | float | bool | None, text: str) -> None:
    assert cell(value) == text


@pytest.mark.parametrize(
    ("cells", "texts", "right"),
    [
        ([0.5, 0.98217, NAN], ["0.5000", "0.9822", DASH], True),
        ([12.25, 3, None], ["12.25", "3.00", DASH], True),
        ([1, 20, 3000], ["1", "20", "3,000"], True),
        ([1e9, 0.001], ["1,000,000,000", "0.001"], True),
        ([NAN, None], [DASH, DASH], True),
        ([0.0, 0.0], ["0", "0"], True),
        (["97.1 %", "2.3x", "8.1 ± 0.3 ms", "1,024 MiB"], ["97.1 %", "2.3x", "8.1 ± 0.3 ms", "1,024 MiB"], True),
        (["M0", "3 seeds, paired"], ["M0", "3 seeds, paired"], False),
        ([True, False], ["yes", "no"], False),
        ([], [], False),
        ([None], [DASH], False),
    ],
)
def test_columns(cells: list[str | float | bool | None], texts: list[str], right: bool) -> None:
    assert column(cells) == (texts, right)


def test_ticks_are_round_and_labels_tell_them_apart() -> None:
    assert [label for _, label in x_axis([1, 2, 3], 6).ticks] == ["1", "2", "3"]
    assert [label for _, label in x_axis([0, 2_000_000], 4).ticks] == ["0", "0.5M", "1.0M", "1.5M", "2.0M"]
    assert [label for _, label in y_axis([0.81, 0.99], None, True, 5).ticks] == ["80%", "85%", "90%", "95%", "100%"]
    assert y_axis([0.2, 0.9], None, False, 5).low == 0
    assert y_axis([5.0], (0, 1), False, 5)[:2] == (0, 1)
    for values in ([7.0], [0.0], [1e-9, 2e-9], [1e6, 1e6 + 0.01], [-1e149, 1e149], [5e-324, 0.0], [0.1, 0.1 + 1e-17]):
        for percent in (False, True):
            axis = y_axis(values, None, percent, 6)
            labels = [label for _, label in axis.ticks]
            assert axis.low <= min(values) <= max(values) <= axis.high
            assert axis.low < axis.high
            assert 1 <= len(labels) == len(set(labels)) <= 8


def test_a_gap_stays_a_gap() -> None:
    curves = Curves("c", "x", "y", {"a": [(0, 1.0), (1, 2.0), (2, NAN), (3, 3.0)]})
    svg = charts.line_chart(curves, 520, 350, names_at_ends=True)
    assert svg.count("<path") == 2
    assert svg.count("<circle") == 3
    assert "nan" not in svg
    assert "1 at first, 3 at last" in charts.describe(curves)


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    series = {f"s{number}": [(0, 0.0), (1, 1 + number / 1e4)] for number in range(6)}
    svg = charts.line_chart(Curves("c", "x", "y", series), 520, 350, names_at_ends=True)
    heights = sorted(float(y) for y in re.findall(r'class="end s\d" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 6
    assert min(np.diff(heights)) > 15


LOOK = """
const found = document.body.dataset;
found.undecoded = [...document.images].filter(image => image.naturalWidth === 0).length;
found.images = document.images.length;
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.clientWidth = document.documentElement.clientWidth;
found.title = document.title.slice(0, 4);
found.charts = [...document.querySelectorAll("svg[role=img]")].filter(svg => svg.getClientRects().length).length;
found.outside = [...document.querySelectorAll("svg[role=img] text")].filter(text => {
  const box = text.getBoundingClientRect(), svg = text.closest("svg[role=img]").getBoundingClientRect();
  return box.width && (box.left < svg.left - 4 || box.right > svg.right + 4);
}).length;
"""


@pytest.mark.parametrize("width", [1200, 700, 400, 320])
def test_in_a_browser(report: Path, sections: list[Section], width: int) -> None:
    elements = Elements(chromium.render(report, width, LOOK))
    (body,) = elements.all("body")
    assert body["data-client-width"] == str(width)
    assert body["data-title"] == "Demo"
    assert body["data-images"] == "6"
    assert body["data-undecoded"] == "0"
    assert body["data-overflow"] == "0"
    assert body["data-charts"] == "7"
    assert body["data-outside"] == "0"
    assert len(elements.all("section")) == len(sections)
    assert len(elements.all("tr")) == 1 + len(sections) + (1 + 2) + (1 + 3) + 1


def test_as_it_is_in_a_browser(report: Path) -> None:
    assert len(Elements(chromium.render(report)).all("section")) == 4


@pytest.mark.parametrize("dark", [False, True])
def test_follows_the_readers_colours(report: Path, tmp_path: Path, dark: bool) -> None:
    chromium.screenshot(report, tmp_path / "page.png", 400, 600, dark)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (400, 600)
        pixels = np.asarray(picture)
    assert pixels[2, 2].max() < 40 if dark else pixels[2, 2].min() > 240
    assert int(pixels.max()) - int(pixels.min()) > 180
