"""`steepest.report` for results that are no race's: figures, a page, tables."""

import io
import re
import subprocess
import sys
import urllib.request
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steepest.report import drawing, pages, styles, tables

NAMES = ["plain", "with <noise>"]
TEMPLATE = """{% extends "page.html.jinja" %}
{% from "parts.html.jinja" import figure, legend %}
{% block title %}{{ title }}{% endblock %}
{% block body %}{{ legend(keys) }}
{% for each in figures %}{{ figure(each) }}{% endfor %}{% endblock %}"""


def curves(**options):
    series = [
        drawing.Series([1, 2, 3], [3.0, 2.0, 1.0]),
        drawing.Series([1, 2, 3], [3.0, 1.0, 0.5], low=[2, 0.5, 0.1], high=[4, 2, 1]),
    ]
    looks = styles.choose_styles(NAMES, "plain")
    axes = {"xlabel": "epoch", "ylabel": "sharpness", "limits": (0.0, 4.0)}
    return drawing.draw_lines(NAMES, series, looks, **{**axes, "key": "q", **options})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a template of its own."""
    (tmp_path / "surfaces_example").mkdir()
    (tmp_path / "surfaces_example" / "__init__.py").touch()
    (tmp_path / "surfaces_example" / "own.html.jinja").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "surfaces_example"
    sys.modules.pop("surfaces_example", None)


def test_a_page_of_another_folder(package):
    looks = styles.choose_styles(NAMES, "plain", muted=["with <noise>"])
    figures = [
        pages.Figure("Sharpness", "The largest eigenvalue.", [curves()]),
        pages.Figure(
            "Each", "One a panel.", panels=[pages.Panel(curves(key="r").svg, "e1-panel", "<1>")]
        ),
    ]
    html = pages.render(
        package,
        "own.html.jinja",
        NAMES,
        styles.make_legend(NAMES, looks, ["", "<b>"]),
        title="<title>",
        figures=figures,
    )
    assert "<title>&lt;title&gt;</title>" in html
    assert "with &lt;noise&gt; <small>(&lt;b&gt;)</small>" in html
    assert "stroke: var(--untuned)" in html
    assert '<div id="e1-panel"><h4>&lt;1&gt;</h4>' in html
    assert html.count("<svg") == 2 + 2  # of the legend, and the figures
    assert re.findall('download="(.*?)"', html) == ["sharpness.svg", "sharpness.png"]
    assert "--name: 15ch" in html  # the longest name and 3


def test_each_curve_is_a_group_with_its_name():
    svg = curves().svg
    ids = {group.get("id") for group in ElementTree.fromstring(svg).iter() if group.get("id")}
    assert {"e0-q", "e1-q", "e0-q-label", "e1-q-label", "e1-q-quartiles"} <= ids
    assert "e0-q-quartiles" not in ids
    assert curves().svg == svg
    assert not re.search("#(?!ffffff)[0-9a-f]{6}", svg)  # every colour is the style sheet's


def test_a_saved_drawing_needs_no_page():
    drawn = curves()
    assert curves() == drawn
    assert not re.search("var|currentColor", drawn.file)
    assert {styles.INK, styles.LIGHT[0]} <= set(re.findall("#[0-9a-f]{6}", drawn.file))
    assert ElementTree.fromstring(drawn.file).get("width") == "360pt"
    with Image.open(io.BytesIO(drawn.png)) as image:
        assert image.size == (2 * 360, int(2 * 72 * drawing.SIZE[1]))
        found = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert max(map(min, found)) >= 253  # the paper is white


def test_a_png_keeps_the_colours_of_its_lines():
    names = [f"{i}" for i in range(1 + len(styles.LIGHT))]
    x = [i / 10 for i in range(100)]
    series = [
        drawing.Series(x, [i + v % 1 for v in x], [i - 1] * 100, [i + 2] * 100)
        for i in range(len(names))
    ]
    looks = styles.choose_styles(names, "0")
    axes = {"xlabel": "x", "ylabel": "y", "limits": (0.0, 12.0), "key": "q"}
    png = drawing.draw_lines(names, series, looks, **axes).png
    with Image.open(io.BytesIO(png)) as image:
        found = [color for _, color in image.convert("RGB").getcolors(1 << 20)]
    for wanted in (styles.INK, *styles.LIGHT):
        parts = [int(wanted[i : i + 2], 16) for i in (1, 3, 5)]
        near = [max(abs(a - b) for a, b in zip(parts, color, strict=True)) for color in found]
        assert min(near) <= 4, wanted


@pytest.mark.parametrize("name", ["", "plain", "x" * 22, "my_package.optimizers:AVeryLongClass"])
def test_a_long_name_keeps_its_beginning_and_its_end(name):
    short = drawing.shorten(name)
    assert short == name if len(name) <= drawing.LONGEST else len(short) == drawing.LONGEST
    assert (short[:5], short[-5:]) == (name[:5], name[-5:])


def test_the_title_of_an_axis_is_not_longer_than_its_axis():
    title = "validation mean_squared_error_of_the_whole_thing_that_we_predict"
    for words in (title, "a " * 40):
        assert max(map(len, drawing.wrap(words).splitlines())) <= drawing.TITLE
        assert drawing.wrap(words).replace("\n", "").replace(" ", "") == words.replace(" ", "")


@given(st.text() | st.binary())
def test_what_is_saved_is_what_was_given(content):
    url = pages._data_url(content, "text/csv")
    assert not set("\"'<>&#\n\r\t") & set(url)  # in an attribute, and in an address
    with urllib.request.urlopen(url) as answer:
        found = answer.read()
    assert found == (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("By step log", "by-step-log"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "figure"),
        ("<i>é x</i>" * 40, ("i-é-x-i-" * 40)[:80]),
    ],
)
def test_a_title_is_a_safe_file_name(title, name):
    assert pages._file_name(title) == name


def test_a_logarithmic_axis_needs_values_above_zero():
    assert curves(log_y=True).svg != curves().svg
    below = [drawing.Series([1, 2], [1.0, -1.0]), drawing.Series([], [])]
    looks = styles.choose_styles(NAMES, "plain")
    axes = {"xlabel": "x", "ylabel": "y", "limits": (-2.0, 2.0), "key": "q"}
    linear, log = (
        drawing.draw_lines(NAMES, below, looks, **axes, log_y=log_y) for log_y in (False, True)
    )
    assert linear == log


def test_rows_are_aligned_and_formulas_defused():
    assert tables.align([("a", "bcd", ""), ("abc", "d", "e")]) == ["a   bcd", "abc d   e"]
    text = tables.csv_text(("name", "x"), [("=1+1", -1.0), (None, "-a")])
    assert text.split("\r\n") == ["name,x", "'=1+1,-1.0", ",'-a", ""]


def test_a_table_needs_no_matplotlib():
    code = "import sys, steepest.report.tables; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
