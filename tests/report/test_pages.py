"""`steepest.report` for results that are no race's: figures, a page, tables."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from steepest.report import drawing, pages, styles, tables

NAMES = ["plain", "with <noise>"]
TEMPLATE = """{% extends "page.html.jinja" %}
{% from "parts.html.jinja" import figure, legend %}
{% block title %}{{ title }}{% endblock %}
{% block body %}{{ legend(keys) }}
{% for each in figures %}{{ figure(each, "make sharpness") }}{% endfor %}{% endblock %}"""


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
        pages.Figure("Sharpness", "The largest eigenvalue.", [pages.Drawing(curves())]),
        pages.Figure(
            "Each", "One a panel.", panels=[pages.Panel(curves(key="r"), "e1-panel", "<1>")]
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
    assert html.count('<code tabindex="0">make sharpness</code>') == 2
    assert "--name: 15ch" in html  # the longest name and 3


def test_each_curve_is_a_group_with_its_name():
    svg = curves()
    ids = {group.get("id") for group in ElementTree.fromstring(svg).iter() if group.get("id")}
    assert {"e0-q", "e1-q", "e0-q-label", "e1-q-label", "e1-q-quartiles"} <= ids
    assert "e0-q-quartiles" not in ids
    assert curves() == svg
    assert not re.search("#0103", svg)  # every colour is the style sheet's


def test_a_logarithmic_axis_needs_values_above_zero():
    assert curves(log_y=True) != curves()
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
