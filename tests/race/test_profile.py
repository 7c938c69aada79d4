"""Performance profiles over several races: by hand, by scipy, and the command with its page."""

import json
import math
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from steepest.cli import main
from steepest.errors import BadCall
from steepest.profiles import _stairs, notes, profile, rows, score, share
from tests.race import invented


def summary(task, *, data="0", target=0.9, complete=True, **steps):
    """A summary as far as a profile reads it; `steps`: entry -> steps to target of each seed."""
    return {
        "task": task,
        "metric": "accuracy",
        "target": target,
        "complete": complete,
        "plan": {"seed": 0, "steps": 300, "seeds": len(next(iter(steps.values())))},
        "provenance": {"data_sha256": data, "task_sha256": None},
        "entries": {name: {"steps_to_target": list(each)} for name, each in steps.items()},
    }


THREE = [
    summary("a", adamw=[100, 100, 120], adam=[200, 200, 200], momentum=[50, 40, 60]),
    summary("b", adamw=[100, 300, 100], adam=[100, 100, 100], momentum=[None, None, 10]),
    summary("c", adamw=[20, 20, 20], adam=[70, 60, 50], momentum=[30, 30, 30], radam=[1, 1, 1]),
]


def test_a_profile_by_hand():
    found = profile(THREE)
    ratios = {name: entry["ratios"] for name, entry in found["entries"].items()}
    assert ratios == {"adamw": [2, 1, 1], "momentum": [1, None, 1.5], "adam": [4, 1, 3]}
    assert found["entries"]["adamw"]["within"] == {"1": 2 / 3, "2": 1, "4": 1}
    assert found["entries"]["momentum"]["within"] == {"1": 1 / 3, "2": 2 / 3, "4": 2 / 3}
    assert list(found["entries"]) == ["adamw", "momentum", "adam"]
    scores = [entry["score"] for entry in found["entries"].values()]
    assert scores == pytest.approx(
        [(2 / 3 + 1 + 1) / 3, (1 + 0 + 2.5 / 3) / 3, (0 + 1 + 1 / 3) / 3]
    )
    assert found["left_out"] == ["radam"]
    assert rows(found)[0] == ["adamw", "67 %", "100 %", "100 %", "0.89", "2.00, 1.00, 1.00"]
    assert rows(found)[1][-1] == "1.00, \u2013, 1.50"


def test_half_of_the_seeds_are_not_enough():
    half = summary("d", adamw=[10, 10, 10, 10], adam=[10, 10, None, None])
    most = summary("e", adamw=[10, 10, 10, 10], adam=[10, 10, 10, None])
    assert profile([half, most])["entries"]["adam"]["steps"] == [None, 10]


def test_where_nobody_arrives_it_counts_against_all():
    found = profile([THREE[0], summary("hard", adamw=[None], adam=[None], momentum=[None])])
    assert found["nobody"] == ["hard"]
    assert max(entry["within"]["4"] for entry in found["entries"].values()) == 0.5
    assert any("No entry reached" in line and "hard" in line for line in notes(found))


positive = some.floats(1, 10) | some.just(math.inf)


@given(some.lists(positive, min_size=1, max_size=8))
def test_a_profile_rises_and_the_score_is_its_area(ratios):
    taus = np.linspace(1, 4, 7)
    heights = [share(ratios, tau) for tau in taus]
    assert all(a <= b for a, b in pairwise(heights))
    jumps = sorted({r for r in ratios if 1 < r < 4})
    edges = [1.0, *jumps, 4.0]
    # between two jumps a profile is flat; edges may be a last bit apart
    area = sum((b - a) * share(ratios, (a + b) / 2) for a, b in pairwise(edges))
    assert score(ratios) == pytest.approx(area / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("summaries", "said"),
    [
        (THREE[:1], "1 race given: expected two or more"),
        ([THREE[0], THREE[0]], "given twice"),
        ([THREE[0], summary("f", lion=[1], sgd=[2])], "0 entries in common"),
    ],
)
def test_what_is_no_profile_is_refused(summaries, said):
    with pytest.raises(BadCall, match=said):
        profile(summaries)


def test_another_seed_or_number_of_steps_is_no_second_task():
    again = summary("a", data="1", adamw=[1], adam=[2])
    assert len(profile([THREE[0], again])["races"]) == 2
    for change in ({"seed": 1}, {"steps": 9}):
        again = summary("a", adamw=[1], adam=[2])
        again["plan"].update(change)
        with pytest.raises(BadCall, match="the task a is given twice"):
            profile([THREE[0], again])
    one, renamed = (summary(name, adamw=[1], adam=[2]) for name in ("mine", "copy"))
    for each in (one, renamed):
        each["provenance"]["task_sha256"] = "f"
    with pytest.raises(BadCall, match="given twice"):
        profile([one, renamed])


def test_a_target_that_is_reached_before_the_first_step():
    races = [THREE[0], summary("z", adamw=[0], adam=[5], momentum=[0])]
    found = profile(races)["entries"]
    assert [found[e]["ratios"][1] for e in ("adamw", "adam", "momentum")] == [1, None, 1]
    assert "among the entries compared" in " ".join(notes(profile(races)))


@pytest.fixture
def folders(tmp_path):
    made = []
    for name, task in (("one", invented.DIGITS), ("two <b>", invented.LOSS)):
        folder = tmp_path / name
        folder.mkdir()
        found = invented.race(task=task)
        text = json.dumps({**found, "task": name})
        (folder / "summary.json").write_text(text)
        made.append(folder)
    return made


def test_the_command_prints_a_table_and_writes_a_page(folders, tmp_path, capsys):
    out = tmp_path / "profile.html"
    assert main(["profile", *map(str, folders), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in ("n=2 races", "adabelief", str(out)))
    html = out.read_text()
    assert [html.count(text) > 0 for text in ("<script", "<b>", "two &lt;b&gt;")] == [0, 0, 1]
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(html)
    drawn = {attrs.get("id") for tag, attrs in tags if tag == "g"}
    assert {f"e{i}-p" for i in range(5)} <= drawn  # a line for each entry
    assert not [a for t, a in tags if t in ("img", "link", "iframe") or "src" in a]


def test_as_json(folders, capsys):
    assert main(["profile", *map(str, folders), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [race["task"] for race in found["races"]] == ["one", "two <b>"]


def test_a_line_jumps_where_a_ratio_lies():
    x, y = _stairs([2.0, None, 1.0, 7.0])
    assert list(zip(x, y, strict=True)) == [(1, 0), (1, 0), (1, 25), (2, 25), (2, 50), (4, 50)]


@pytest.mark.parametrize("what", ["missing", "garbage", "unfinished", "array"])
def test_bad_folders(folders, what, capsys):
    path = folders[1] / "summary.json"
    text = {"garbage": "{", "unfinished": json.dumps(summary("u", complete=False, a=[1])),
            "array": "[]"}.get(what)  # fmt: skip
    path.unlink()
    if text:
        path.write_text(text)
    assert main(["profile", *map(str, folders)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("not finished" if what == "unfinished" else "cannot read") in said
