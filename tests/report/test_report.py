"""report.html: what it says and draws, and how a real browser shows it."""

import csv
import io
import math
import os
import re
import time
import urllib.request
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steepest.race import figures, report
from steepest.race.protocol import Plan
from steepest.race.summary import summarise
from steepest.race.verdicts import verdict
from steepest.report import drawing, styles
from tests.race.invented import DIGITS, FIELD, LOSS, PROVENANCE, pairs, race
from tests.report import browser as chromium
from tests.report.page import Page

EVIL = "<script>alert(1)</script>$x$"
LOST = (("fresh", "adam", 1), ("fresh", "adam", 4), ("tuning", "momentum", 0))
TWELVE = (
    *FIELD, "nadam+warmup+cosine+clip", "torch.optim.rmsprop:RMSprop", "radam+warmup+cosine",
    "rmsprop+cosine", "adabound+one-cycle", "adan+noise", "schedule_free_adamw",
)  # fmt: skip
TITLES = ["Difference to adamw, seed by seed", "By step", "By second", "By trials", "Sensitivity"]


def hostile():
    """A race in which every name that a user gives is an attack."""
    summary = race(FIELD[:2], lost=LOST)
    renamed = {EVIL: summary["entries"]["momentum"], "adamw": summary["entries"]["adamw"]}
    renamed[EVIL]["measures"] = [{EVIL: 1.0}]
    known = {**summary["provenance"], "command": EVIL, "backends": {EVIL: [EVIL]}}
    summary |= {"task": EVIL, "metric": EVIL, "entries": renamed, "provenance": known}
    summary["lint"] = [{"name": "border", "entry": EVIL, "text": EVIL}]
    return {**summary, "reproduce": EVIL, "verdict": verdict(summary)}


def drawings(summary):
    return {
        f.title: [each.svg for each in (*f.drawings, *f.panels)] for f in figures.figures(summary)
    }


def part(svg, name):
    """The group of that id."""
    root = ElementTree.fromstring(svg)
    return next(g for g in root.iter() if g.get("id") == name)


def corners(svg, name):
    """Points of the first path of a group, in the figure's units."""
    path = next(g for g in part(svg, name).iter() if g.tag.endswith("path"))
    return np.array([list(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))])


def spots(svg, name):
    """Places of a mark, of all groups of that id."""
    groups = [g for g in ElementTree.fromstring(svg).iter() if g.get("id") == name]
    uses = [u for g in groups for u in g.iter() if u.tag.endswith("use")]
    return np.array([[float(u.get("x")), float(u.get("y"))] for u in uses])


def straight(x, y):
    """Whether y is an affine function of x, to the precision that is written."""
    residual = np.polyval(np.polyfit(x, y, 1), x) - y
    return len(x) > 2 and np.abs(residual).max() < 0.02


# --- what it says


def test_it_opens_with_the_verdict_every_figure_has_its_n_and_the_page_its_command():
    summary = race(lost=LOST)
    html = report.page(summary)
    text = Page(html).text
    assert text.index(summary["verdict"]) < text.index("The field") < text.index(TITLES[0])
    found = html.split("<figure>")[1:]
    assert [re.search("<h3>(.*?)</h3>", figure)[1] for figure in found] == TITLES
    for title, figure in zip(TITLES, found, strict=True):
        caption = Page(figure[figure.index("<figcaption>") : figure.index("</fig")]).text
        n = 36 if title in TITLES[3:] else 6  # 6 seeds with 6 trials each
        assert set(re.findall(r"n=(\d+)", caption)) == (
            {str(n), "4"} if title == TITLES[2] else {str(n)}
        )
    assert html.count(f'<code tabindex="0">{summary["reproduce"]}</code>') == 1
    assert text.count(summary["reproduce"]) == 1


def test_it_loads_nothing_and_holds_no_script():
    html = report.page(race())
    page = Page(html)
    assert page.loads == []
    assert "script" not in page.tags
    assert "@import" not in html
    html = re.sub('href="data:[^"]*"', "", html)  # what is saved is not loaded
    assert all(part.startswith("#") for part in html.split("url(")[1:])
    assert "default-src 'none'" in html


def test_a_hostile_name_is_text():
    page = Page(report.page(hostile()))
    assert "script" not in page.tags
    assert page.loads == []
    assert page.text.count(EVIL) >= 8


def test_a_long_race_of_many_stays_small():
    names = [*FIELD, "nadam", "radam", "rmsprop", "adabound", *(f"{name}+cosine" for name in FIELD)]
    html = report.page(race(names, evaluations=5000, steps=5000, trials=2))
    assert len(html.encode()) < 2_000_000


def test_the_same_race_gives_the_same_bytes():
    assert report.page(race()) == report.page(race())


def test_every_table_and_every_drawing_can_be_saved():
    summary = race(lost=LOST)
    summary["entries"]["adam"]["measures"] = [{"modes": 3.0}, {"modes": 4.0}]
    saves = Page(report.page(summary)).saves
    tables = {"field.csv", "measures.csv", "configurations.csv"}
    drawn = ["difference-to-adamw-seed-by-seed", "by-trials", "sensitivity"]
    drawn += [f"by-{x}-{axes}" for x in ("step", "second") for axes in ("linear", "log")]
    assert set(saves) == tables | {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    for name, url in saves.items():
        with urllib.request.urlopen(url) as answer:
            content = answer.read()
        if name.endswith("png"):
            with Image.open(io.BytesIO(content)) as image:
                image.verify()
        elif name.endswith("svg"):
            assert {"adamw", "momentum"} & {*ElementTree.fromstring(content).itertext()}
            assert b"var(" not in content
        else:
            assert len(list(csv.reader(io.StringIO(content.decode())))) == 1 + len(FIELD)


def test_the_saved_table_has_plain_numbers():
    summary = race(lost=LOST)
    with urllib.request.urlopen(Page(report.page(summary)).saves["field.csv"]) as answer:
        found = {row["entry"]: row for row in csv.DictReader(io.StringIO(answer.read().decode()))}
    assert list(found) == ["adamw", "momentum", "eadam", "adabelief", "adam"]  # the best first
    for name, entry in summary["entries"].items():
        row, test, difference = found[name], entry["test"], entry["difference"]
        assert float(row["mean"]) == pytest.approx(np.mean(test))
        assert float(row["standard_deviation"]) == pytest.approx(np.std(test, ddof=1))
        assert int(row["fresh_runs"]) == len(test) == 6
        assert int(row["failed"]) == (2 if name == "adam" else 0)
        assert int(row["diverged_tuning_trials"]) == (1 if name == "momentum" else 0)
        ends = [row["difference"], row["difference_low"], row["difference_high"]]
        assert ends == (
            ["", "", ""]
            if difference is None
            else [str(difference[end]) for end in ("mean", "low", "high")]
        )
    steps = summary["entries"]["adamw"]["steps_to_target"]
    assert float(found["adamw"]["steps_to_target"]) == np.median(steps)
    assert found["adam"]["steps_to_target"] == ""  # the target was never reached
    assert found["adam"]["reached_target"] == "0"


def test_an_unfinished_race_has_tables_to_save():
    plan = Plan("digits", FIELD[:2], 5, 6, 100, 0)
    for done in (0, 1, 61):
        summary = summarise(DIGITS, plan, pairs(plan)[:done], PROVENANCE)
        with urllib.request.urlopen(Page(report.page(summary)).saves["field.csv"]) as answer:
            rows = list(csv.DictReader(io.StringIO(answer.read().decode())))
        assert [row["fresh_runs"] for row in rows] == [str(max(0, done - 60)), "0"]


@pytest.mark.parametrize("task", [DIGITS, LOSS])
def test_every_drawing_has_the_titles_of_its_axes(task):
    score = "validation accuracy (%)" if task is DIGITS else "validation perplexity"
    xlabels = {
        "Difference": "better is to the", "By step": "step", "By second": "training time (s)",
        "By trials": "number of tuning trials", "Sensitivity": "learning rate",
    }  # fmt: skip
    found = figures.figures(race(task=task))
    for figure in found:
        (xlabel,) = (text for title, text in xlabels.items() if figure.title.startswith(title))
        drawn = [x.svg for x in (*figure.drawings, *figure.panels)]
        for svg in [*drawn, *([figure.together.file] if figure.together else [])]:
            said = " ".join(" ".join(ElementTree.fromstring(svg).itertext()).split())
            assert xlabel in said
            assert score in said or figure.title.startswith("Difference")


def test_diverged_runs_are_shown():
    summary = race(lost=LOST)
    text = " ".join(Page(report.page(summary)).text.split())
    assert "adam (2 of 6 failed)" in text
    assert "momentum (n=36, 1 diverged)" in text
    panels = dict(zip(FIELD, drawings(summary)["Sensitivity"], strict=True))
    (_, y) = spots(panels["momentum"], "e1-l").T
    assert len(y) == 36
    assert y.argmax() == 0  # the lost trial at the worse edge
    assert "n=4 to 6 runs per entry that did not diverge" in text


def test_a_race_without_test_data_or_target_says_so():
    summary = race()
    lacking = {**summary, "test_data": False, "target": None}
    page = Page(report.page({**lacking, "verdict": verdict(lacking)}))
    assert "the task has no test data" in page.text
    assert "validation accuracy (%)" in page.text
    assert not re.search(r"test\s+(accuracy|score)", page.text)
    assert "Target" not in page.text
    assert "test cases" in Page(report.page(summary)).text
    del summary["test_standard_error"]
    assert "n=0" not in Page(report.page({**summary, "test_size": 0})).text


def test_it_says_what_was_chosen_for_the_seeds():
    summary = race()
    low, middle, high = summary["entries"]["eadam"]["hyperparameters"]["lr"]
    assert low < middle < high
    page = Page(report.page(summary)).text
    assert f"lr {low:.3g} to {high:.3g}" in page
    summary["entries"]["eadam"]["hyperparameters"]["lr"] = [0.0123, 0.0123, 0.0123]
    assert "lr 0.0123 to" not in Page(report.page(summary)).text


def test_the_best_configuration_is_a_point_that_was_run():
    summary = race()
    for entry in summary["entries"].values():
        chosen = [entry["tuning"][i] for i in entry["chosen"]]
        top = max(chosen, key=lambda trial: trial["validation"])
        assert entry["best"]["hyperparameters"] == top["hyperparameters"]
        assert entry["tuning"][entry["best"]["index"]] is not None
        assert entry["best"]["validation"] == top["validation"]
        shown = f"lr={top['hyperparameters']['lr']:.3g}"
        assert shown in Page(report.page(summary)).text


@pytest.mark.parametrize("done", [0, 1, 7, 60, 61, 70])
def test_an_interrupted_race_has_a_report(done):
    # of 2 entries with 6 seeds and 5 trials: within the tunings of one, and of the fresh seeds
    plan = Plan("digits", FIELD[:2], 5, 6, 100, 0)
    summary = summarise(DIGITS, plan, pairs(plan)[:done], PROVENANCE)
    text = Page(report.page(summary)).text
    assert summary["verdict"] == f"No verdict: {done} of 72 runs are finished."
    assert summary["verdict"] in text
    assert ("Sensitivity" in text) == (done > 0)
    chosen = [entry["chosen"] for entry in summary["entries"].values()]
    assert [c is not None for c in chosen] == [done >= 30, done >= 60]
    assert ("lr=" in text) == (done >= 30)


def test_other_measures_are_means_over_the_runs_that_reported_them():
    summary = race()
    summary["entries"]["adam"]["measures"] = [{"modes": 3.0}, {"modes": 4.0}, {}]
    assert "3.5 ± 0.7071 (n=2)" in Page(report.page(summary)).text


@pytest.mark.parametrize("lost", [(), [("fresh", e, i) for e in FIELD for i in range(6)]])
@pytest.mark.parametrize("task", [None, LOSS])
def test_hard_races_are_shown(lost, task):
    kinds = {"task": task} if task else {}
    for size in ({"seeds": 1, "trials": 1}, {"evaluations": 2}, {"seeds": 6, "steps": 2}):
        summary = race(**{**kinds, **size}, lost=lost)
        assert summary["verdict"] in Page(report.page(summary)).text


# --- what it draws


def test_a_curve_is_where_its_numbers_are():
    summary = race()
    linear, log = drawings(summary)["By step"]
    late = slice(-10, None)  # matplotlib cuts what is off the axes
    for svg, key, along in ((linear, "slin", np.asarray), (log, "slog", np.log10)):
        data, drawn = [], []
        for i, entry in enumerate(summary["entries"].values()):
            curve = entry["curve"]
            data += zip(along(curve["steps"][late]), curve["median"][late], strict=True)
            drawn += corners(svg, f"e{i}-{key}")[late].tolist()
        for have, want in zip(np.transpose(data), np.transpose(drawn), strict=True):
            assert straight(have, want)  # all entries on one scale
    rims = corners(linear, "e1-slin-quartiles")[:, 1]
    median = corners(linear, "e1-slin")[-1, 1]
    assert rims.min() < median < rims.max()
    linear, _ = drawings(summary)["By second"]
    seconds = summary["entries"]["eadam"]["timing"]["curve_seconds"]
    assert straight(seconds[-10:], corners(linear, "e2-tlin")[-10:, 0])


def test_a_loss_has_two_logarithmic_axes():
    summary = race(task=LOSS)
    linear, log = drawings(summary)["By step"]
    curve = summary["entries"]["momentum"]["curve"]
    late = np.log10(curve["median"][-10:])
    assert straight(late, corners(log, "e1-slog")[-10:, 1])
    assert not straight(late, corners(linear, "e1-slin")[-10:, 1])
    assert "mathdefault" not in log


def test_differences_are_those_of_the_seeds():
    summary = race(lost=LOST[:2])
    (svg,) = drawings(summary)[TITLES[0]]
    entries = summary["entries"]
    for i, name in ((1, "momentum"), (2, "eadam")):
        each = 100 * (np.array(entries[name]["test"]) - entries["adamw"]["test"])
        ends = [100 * entries[name]["difference"][end] for end in ("low", "high")]
        drawn = [*spots(svg, f"e{i}-d-seed")[:, 0], *corners(svg, f"e{i}-d-interval")[:, 0]]
        assert straight([*each, *ends], drawn)
        assert drawn[each.argmax()] > drawn[each.argmin()]  # to the right is more
        assert straight([*each, each.mean()], [*drawn[:6], spots(svg, f"e{i}-d-mean")[0, 0]])
    # runs that diverged lie far beyond the others: at the edge, and the others keep their room
    lost = spots(svg, "e3-d-seed")[:, 0]
    assert sorted(np.argsort(lost)[:2]) == [1, 4]
    true = [100 * (np.array(entries[e]["test"]) - entries["adamw"]["test"]) for e in FIELD[3:]]
    room = np.ptp(spots(svg, "e4-d-seed")[:, 0]) / np.ptp(lost)
    assert room > 2 * np.ptp(true[1]) / np.ptp(true[0])


def test_one_run_gone_astray_does_not_flatten_the_others():
    low, high = figures._choose_limits(
        {"maximize": False, "proportion": False}, [2, 2.1, 2.2, 2.3, 1e6]
    )
    assert low < 2
    assert 2.3 < high < 4
    low, high = figures._choose_limits({"maximize": True, "proportion": True}, [96, 95, 95, 94, 10])
    assert low < 10 < 96 < high < 103
    assert figures._choose_limits({"maximize": True, "proportion": True}, [math.nan]) == (0, 1)


def test_sensitivity_has_a_panel_for_each_entry_on_one_scale():
    summary = race()
    panels = drawings(summary)["Sensitivity"]
    assert len(panels) == len(FIELD)

    def ticks(svg, axis):
        return ["".join(g.itertext()).strip() for g in part(svg, axis).iter() if "text" in g.tag]

    for axis in ("matplotlib.axis_1", "matplotlib.axis_2"):
        assert len({tuple(ticks(svg, axis)) for svg in panels}) == 1
        assert len(ticks(panels[0], axis)) > 1
    tried = summary["entries"]["adam"]["tuning"]
    x, y = spots(panels[3], "e3-l").T
    assert straight([math.log10(t["hyperparameters"]["lr"]) for t in tried], x)
    assert straight([t["validation"] for t in tried], y)


def test_what_was_chosen_for_a_fresh_seed_is_ringed():
    summary = race()
    svg = drawings(summary)["Sensitivity"][1]
    uses = [u for u in ElementTree.fromstring(svg).iter() if u.tag.endswith("use")]
    drawn = [(float(u.get("x")), float(u.get("y"))) for u in uses]
    ringed = [drawn.count(tuple(spot)) == 2 for spot in spots(svg, "e1-l").tolist()]
    chosen = summary["entries"]["momentum"]["chosen"]
    assert [i // 6 for i in chosen] == list(range(6))
    assert [i for i, ring in enumerate(ringed) if ring] == chosen


def test_an_untuned_entry_is_grey_in_every_figure():
    summary = race()
    summary["entries"]["eadam"]["untuned"] = "no search space is declared for it"
    assert "eadam (untuned)" in " ".join(Page(report.page(summary)).text.split())
    for title, svgs in drawings(summary).items():
        for k, svg in enumerate(svgs):
            root = ElementTree.fromstring(svg)
            mine = {
                color
                for g in root.iter()
                if (g.get("id") or "").startswith("e2-") and "d-label" not in g.get("id")
                for color in re.findall(r"var\(--\w+\)", ElementTree.tostring(g, "unicode"))
            }
            assert mine == ({"var(--untuned)"} if title != "Sensitivity" or k == 2 else set())
            if title != "Sensitivity":
                assert "var(--c0)" in svg  # momentum


def test_every_line_has_its_name_beside_it():
    for title, svgs in drawings(race()).items():
        for svg in svgs if title != "Sensitivity" else ():
            for i, name in enumerate(FIELD):
                if title == TITLES[0] and name == "adamw":
                    continue
                key = next(iter(re.findall(rf'"e{i}-(\w+)-label"', svg)))
                assert name in "".join(part(svg, f"e{i}-{key}-label").itertext())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_labels_stay_in_order_inside_and_apart(heights):
    placed = drawing.spread_labels(heights)
    gap = min(drawing.GAP, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert all(placed[b] - placed[a] > gap - 1e-9 for a, b in pairwise(order))
    assert -1e-9 < min(placed) <= max(placed) < 1 + 1e-9
    lone = all(b - a > gap for a, b in pairwise(sorted(heights)))
    assert not lone or placed == pytest.approx(heights)


# --- colours: contrast of WCAG 2.1; dichromats of Machado et al. 2009; distances in OKLab

VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
TO_CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
TO_LAB = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.808675766]]  # fmt: skip


def linear(color):
    part = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    light = sorted(linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05 for color in (a, b))
    return light[1] / light[0]


def schemes():
    """(paper, ink, grey, colours) of the page in light and in dark."""
    light, dark = report.page(race()).split("@media screen and (prefers-color-scheme: dark)")[:2]
    for css in (light, dark):
        known = dict(re.findall(r"--(paper|ink|untuned|c\d+): (#\w+)", css[:1200]))
        long = {
            k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in known.items()
        }
        yield long.pop("paper"), long


def test_colours_are_told_apart_by_every_eye_in_light_and_in_dark():
    for paper, colors in schemes():
        assert len(colors) == 13  # ink and grey, and 11 that do not repeat up to 12 entries
        assert all(contrast(paper, color) >= 3 for color in colors.values())
        for name, matrix in VISION.items():
            lab = {
                key: TO_LAB @ np.cbrt(TO_CONES @ np.clip(np.array(matrix) @ linear(color), 0, 1))
                for key, color in colors.items()
            }
            for a, b in combinations(lab, 2):
                distance = np.linalg.norm(lab[a] - lab[b])
                assert distance > 0.08, (name, colors[a], colors[b], distance)


def test_no_two_entries_look_the_same():
    names = [*FIELD, "nadam", "radam", "rmsprop", "adabound", "sgd", "lion", "adamax", "adagrad"]
    looks = [(x.color, str(x.dashes), x.marker) for x in styles.choose_styles(names, "adamw")]
    assert len(set(looks)) == len(names)
    assert len({color for color, *_ in looks[:12]}) == 12
    assert len({(dashes, marker) for _, dashes, marker in looks}) == len(
        names
    )  # in black and white


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.PATH is None:
        missing = "no chromium on PATH: apt-get install chromium, or name one in CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> a file: a usual race, a hostile one, and one of twelve with long names."""
    folder = tmp_path_factory.mktemp("pages")
    made = {"usual": race(lost=LOST), "hostile": hostile(), "twelve": race(TWELVE, lost=LOST)}
    for name, summary in made.items():
        (folder / f"{name}.html").write_text(report.page(summary), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def test_the_browser_tells_what_is_wrong(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src=missing.png><p style='width: 1000px'>wide"
        "<script>console.error('ouch'); setTimeout(() => nonsense(), 0)</script>"
    )
    browser.open(page, width=390)
    kinds = {event["method"] for event in browser.complaints()}
    assert "Runtime.consoleAPICalled" in kinds
    assert "Log.entryAdded" in kinds
    assert [url.rsplit("/", 1)[1] for url in browser.requests()] == ["bad.html", "missing.png"]
    assert browser.ask(WIDTH) > 390


# not innerWidth: the window of a phone grows with what does not fit
WIDTH = "document.documentElement.scrollWidth"
HIDDEN = "[...document.querySelectorAll('[id^=\"e{}-\"]')].map(x => !x.getClientRects().length)"
STYLE = "getComputedStyle(document.querySelector('{}'))['{}']"


@pytest.mark.parametrize("name", ["usual", "hostile"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_complaint_no_request_no_sideways_scroll(browser, pages, name, width):
    browser.open(pages[name], width=width)
    assert browser.ask("document.querySelectorAll('figure svg').length") > 5
    assert browser.ask(WIDTH) <= width
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]


def test_a_hostile_name_is_shown_and_does_nothing(browser, pages):
    browser.open(pages["hostile"])
    assert browser.ask("document.scripts.length") == 0
    assert browser.ask("document.title") == f"steepest race: {EVIL}"
    assert browser.ask("document.body.innerText").count(EVIL) >= 8
    assert browser.ask(
        "[...document.querySelectorAll('svg text')].some(t => t.textContent.includes('<scr'))"
    )
    # and were a script to get in, the page's own policy would stop it
    browser.ask(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'x=1'}))"
    )
    assert browser.ask("typeof x") == "undefined"


def test_an_entry_can_be_hidden_and_shown_again(browser, pages):
    browser.open(pages["usual"])
    drawn = browser.ask(HIDDEN.format(1))
    assert len(drawn) > 8
    before = drawn.count(True)  # those on the axes that are not shown
    assert before < len(drawn)
    others = browser.ask(HIDDEN.format(2))
    browser.ask("document.querySelector('#k1').click()")
    assert all(browser.ask(HIDDEN.format(1)))
    assert browser.ask(HIDDEN.format(2)) == others
    browser.ask("document.querySelector('#k1').click()")
    assert browser.ask(HIDDEN.format(1)) == drawn


def test_axes_can_be_logarithmic(browser, pages):
    shown = "[...document.querySelectorAll('.drawing.{}')].map(x => x.offsetHeight > 0)"
    browser.open(pages["usual"])
    for linear_shown in (True, False, True):
        assert browser.ask(shown.format("linear")) == [linear_shown] * 2
        assert browser.ask(shown.format("log")) == [not linear_shown] * 2
        browser.ask("document.querySelector('#log').click()")


def rgb(text):
    return "#" + "".join(f"{int(n):02x}" for n in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(browser, pages, dark):
    browser.open(pages["usual"], dark=dark)
    paper, ink = (rgb(browser.ask(STYLE.format("body", k))) for k in ("backgroundColor", "color"))
    assert (linear(paper).max() < 0.1) == dark
    assert contrast(paper, ink) > 7
    assert rgb(browser.ask(STYLE.format("figure svg text", "fill"))) == ink
    line = rgb(browser.ask(STYLE.format('[id="e1-slin"] path', "stroke")))
    assert line == (styles.DARK if dark else styles.LIGHT)[0]
    for title in ("figure small", ".keys small", "td", "code"):
        found = browser.ask(f"document.querySelector('{title}') && {STYLE.format(title, 'color')}")
        assert found is None or contrast(paper, rgb(found)) > 4.5


CLIPPED = """[...document.querySelectorAll('td, th, figure svg text, code, .verdict')].filter(x => {
  const box = x.getBoundingClientRect()
  return box.width && (box.left < -1 || box.right > document.documentElement.clientWidth + 1)
}).map(x => x.textContent)"""
SMALLEST = """Math.min(...[...document.querySelectorAll('figure svg text')]
  .filter(x => x.getClientRects().length).map(x => {
    const matrix = x.getScreenCTM()
    return parseFloat(getComputedStyle(x).fontSize) * Math.hypot(matrix.c, matrix.d)
  }))"""


@pytest.mark.parametrize("name", ["usual", "twelve"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_cut_and_every_label_is_legible(browser, pages, name, width):
    browser.open(pages[name], width=width)
    assert browser.ask(CLIPPED) == []
    assert browser.ask(SMALLEST) >= 9
    inside = "[...document.querySelectorAll('.wide')].every(x => x.scrollWidth <= x.clientWidth)"
    assert browser.ask(inside)
    assert browser.ask(f"{STYLE.format('td', 'display')} === 'flex'") == (width == 390)


@pytest.mark.parametrize("name", ["usual", "hostile"])
def test_what_is_saved_arrives_as_a_file(browser, pages, name, tmp_path):
    browser.open(pages[name])
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    links = browser.ask("[...document.querySelectorAll('a[download]')].map(x => x.download)")
    for wanted in ("field.csv", "by-step-linear.svg", "sensitivity.png"):
        browser.ask(f"document.querySelectorAll('a[download]')[{links.index(wanted)}].click()")
        end = time.monotonic() + chromium.PATIENCE
        while not (tmp_path / wanted).exists():
            assert time.monotonic() < end, wanted
            browser.ask("1")
    assert (tmp_path / "field.csv").read_text().startswith("entry,fresh_runs,mean")
    assert ElementTree.parse(tmp_path / "by-step-linear.svg").getroot().tag.endswith("svg")
    assert browser.complaints() == []
    browser.open(tmp_path / "by-step-linear.svg", dark=True)  # alone, it has its colours
    line = browser.ask(STYLE.format('[id="e1-slin"] path', "stroke"))
    assert rgb(line) == (styles.INK if name == "hostile" else styles.LIGHT[0])  # its baseline


@pytest.mark.parametrize("dark", [False, True])
def test_print_is_light_and_fits_the_paper(browser, pages, dark, tmp_path):
    browser.open(pages["usual"], width=718, media="print", dark=dark)  # A4 less its margins
    assert rgb(browser.ask(STYLE.format("body", "backgroundColor"))) == "#ffffff"
    assert rgb(browser.ask(STYLE.format("body", "color"))) == "#1b1f24"
    assert browser.ask("[...document.querySelectorAll('input')].every(x => !x.offsetHeight)")
    assert browser.ask(WIDTH) <= 718
    boxes = "[...document.querySelectorAll('.wide')]"
    assert not browser.ask(f"{boxes}.some(x => x.scrollWidth > x.clientWidth + 1)")
    browser.pdf(tmp_path / "page.pdf")
    paper = (tmp_path / "page.pdf").read_bytes()
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 6
