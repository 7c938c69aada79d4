"""Runs made elsewhere: the verdict by hand, the verdict of the race itself, and awkward files."""

import itertools
import json
import math
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steepest import cli, profiles
from steepest.errors import BadCall
from steepest.race import imported, notes, report, run_table, tables
from steepest.race.imported import Import
from steepest.race.outcomes import settle
from steepest.race.protocol import Plan, Trial
from steepest.race.run_table import Source
from steepest.race.schema import Summary
from steepest.race.summary import summarise
from tests.race.invented import DIGITS, LOSS, PROVENANCE, pairs
from tests.race.test_schema import wrong
from tests.report.page import Page


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary_of(text, path, *, metric="test", maximize=True, proportion=False, **more):
    """The summary of a file with this text, or these bytes."""
    path = path / "sweep.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    request = Import(Source(path, metric, maximize, proportion), **more)
    return imported.summarise_runs(request, run_table.read(request.source))


def table(results, head="entry,seed,test"):
    """The text of a file; results: entry -> a metric for each seed, from 0 on."""
    lines = [f"{e},{i},{v!r}" for e, values in results.items() for i, v in enumerate(values)]
    return "\n".join([head, *lines]) + "\n"


def noise(n, *shifts, seed=0):
    """Lists of n numbers, a list for each shift."""
    rng = np.random.default_rng(seed)
    return [(shift + rng.normal(size=n)).tolist() for shift in shifts]


FIVE = dict(zip(("adamw", "sgd"), noise(5, 0, 0.3), strict=True))


def difference(summary, name):
    return summary["entries"][name]["difference"]


# --- the verdict by hand


def test_the_verdict_is_holms_over_paired_t_tests(tmp_path):
    base, *rivals = noise(9, 0, 0, 1.3, 3, seed=5)
    names = ["adam", "lion", "sgd"]
    summary = summary_of(table({"adamw": base, **dict(zip(names, rivals, strict=True))}), tmp_path)
    tests = {n: stats.ttest_rel(r, base) for n, r in zip(names, rivals, strict=True)}
    left, rejecting, largest = len(names), True, 0.0
    for name in sorted(names, key=lambda n: tests[n].pvalue):
        d, p = difference(summary, name), tests[name].pvalue
        largest = max(largest, min(1.0, left * p))
        level = 1 - 0.05 / left
        assert d["p"] == pytest.approx(p)
        assert d["p_holm"] == pytest.approx(largest)
        rejecting = rejecting and p <= 0.05 / left
        assert d["claim"] == rejecting
        left -= rejecting
        interval = tests[name].confidence_interval(level)
        assert (d["low"], d["high"]) == pytest.approx((interval.low, interval.high))
    assert [difference(summary, n)["claim"] for n in names].count(True) in (1, 2)
    assert "better than adamw in test metric: " in summary["verdict"]
    assert "sgd by " in summary["verdict"]


def test_runs_are_paired_by_seed_wherever_their_rows_are(tmp_path):
    base, rival = noise(7, 0, 0.5)
    head, *lines = table({"adamw": base, "adam": rival}).splitlines()
    summary = summary_of("\n".join([head, *lines[:7], *reversed(lines[7:])]), tmp_path)
    assert difference(summary, "adam")["p"] == pytest.approx(stats.ttest_rel(rival, base).pvalue)
    assert summary["entries"]["adam"]["seeds"] == list(range(7))


def test_a_diverged_run_counts_as_the_worst_and_every_sign_is_flipped(tmp_path):
    base, rival = noise(8, 5, 6.2)
    rival[3], worst = math.nan, max(*base, *rival[:3], *rival[4:])
    summary = summary_of(table({"adamw": base, "adam": rival}), tmp_path, maximize=False)
    full = [worst if math.isnan(v) else v for v in rival]
    flipped = [a - b for a, b in zip(full, base, strict=True)]
    sums = [
        abs(sum(s * d for s, d in zip(signs, flipped, strict=True)))
        for signs in itertools.product((-1, 1), repeat=8)
    ]
    p = sum(s >= abs(sum(flipped)) * (1 - 1e-12) for s in sums) / 2**8
    d = difference(summary, "adam")
    assert d["exact"]
    assert d["p"] == pytest.approx(p)
    assert d["mean"] == pytest.approx(statistics.fmean(flipped))
    assert summary["entries"]["adam"]["failed"] == 1
    assert any(f"{worst:.4g} (the worst value in the file" in n for n in notes.caveats(summary))
    given = summary_of(table({"adamw": base, "adam": rival}), tmp_path, maximize=False, worst="99")
    full[3] = 99.0
    assert given["entries"]["adam"]["test"] == full
    assert any("99 (--worst)" in line for line in notes.caveats(given))


@pytest.mark.parametrize("cell", ["nan", "NaN", "-inf", "", "0.1"])
def test_the_column_diverged_says_which_run_failed(cell, tmp_path):
    reason = "true" if cell in ("", "0.1") else ""
    lines = [f"{e},{i},{v},{w}" for e, i, v, w in (
        *(("adamw", i, 1 + 0.1 * i, "") for i in range(6)),
        *(("adam", i, 2 + 0.3 * i, "False") for i in range(5)),
        ("adam", 5, cell, reason),
    )]  # fmt: skip
    text = "\n".join(["entry,seed,test,diverged", *lines])
    adam = summary_of(text, tmp_path)["entries"]["adam"]
    assert (adam["failed"], adam["diverged"]["fresh"]) == (1, 1)
    assert adam["test"][5] == (0.1 if cell == "0.1" else 1.0)


def test_runs_of_a_unit_count_as_their_mean(tmp_path):
    rng = np.random.default_rng(3)
    runs = rng.normal(size=(3, 6, 2)) + np.array([0, 0.4, 3])[:, None, None]
    lines = [
        f"{entry},{unit},{seed},{runs[k, unit, seed]!r}".replace("np.float64(", "").replace(")", "")
        for k, entry in enumerate(("adamw", "adam", "sgd"))
        for seed in range(2)  # not in the order of the units
        for unit in range(6)
    ]
    summary = summary_of("\n".join(["entry,unit,seed,test", *lines]), tmp_path)
    means = runs.mean(axis=2)
    for k, name in ((1, "adam"), (2, "sgd")):
        d = difference(summary, name)
        interval = stats.ttest_rel(means[k], means[0]).confidence_interval(1 - 0.05 / 2)
        assert d["n"] == 6
        assert (d["low"], d["high"]) == pytest.approx((interval.low, interval.high))
        assert d["claim"] == (interval.low > 0 or interval.high < 0)
    assert summary["entries"]["adamw"]["units"] == pytest.approx(means[0])
    assert "Use sgd: it is better than adamw" in summary["verdict"]
    assert "n=6 units; a unit is the mean of 2 runs." in summary["verdict"]


@pytest.mark.parametrize(("shift", "margin", "said"), [
    (0.0, 0.1, "Keep adamw for now: adam may gain 0.10 points or more"),
    (0.0, 40.0, "Keep adamw: no other entry gains 40.00 points or more"),
    (0.2, 5.0, "Use adam: it is better than adamw"),
])  # fmt: skip
def test_a_margin_of_a_share_is_in_points(shift, margin, said, tmp_path):
    base, rival = noise(8, 0, 0, seed=2)
    values = {
        "adamw": [0.5 + 0.01 * v for v in base],
        "adam": [0.5 + shift + 0.01 * v for v in rival],
    }
    summary = summary_of(table(values), tmp_path, proportion=True, margin=margin)
    d = difference(summary, "adam")
    interval = stats.ttest_rel(values["adam"], values["adamw"]).confidence_interval(0.95)
    assert (d["low"], d["high"]) == pytest.approx((interval.low, interval.high))
    assert summary["verdict"].startswith(said)


def test_a_margin_that_is_none(tmp_path):
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadCall, match=r"--margin .*: expected a number above 0"):
            summary_of(table(FIVE), tmp_path, margin=margin)


# --- the verdict of the race itself

PLAN = Plan("digits", ("adamw", "momentum", "adam"), trials=5, seeds=7, steps=100, seed=0)
MEASURED = replace(LOSS, worst=42.0, measured=42.0)
LOST = [("fresh", "adam", 1), ("fresh", "adam", 4), ("tuning", "momentum", 3)]


def words(verdict):
    """What a race and an import both say, in the words of an import."""
    for old in ("fresh ", " with 5 tuning trials each", "With so little tuning the race showed: "):
        verdict = verdict.replace(old, "")
    verdict = re.sub("test (accuracy|perplexity)", "test metric", verdict)
    sentences = re.split(r"(?<=[.:]) ", verdict)
    return [s for s in sentences if not re.match("A new race|With n=|The exact test|give|run", s)]


@pytest.mark.parametrize("task", [DIGITS, LOSS, MEASURED], ids=["share", "loss", "measured"])
@pytest.mark.parametrize("lost", [[], LOST, [("fresh", "adamw", 0)]], ids=["all", "two", "base"])
def test_the_runs_of_a_race_have_its_verdict(task, lost, tmp_path):
    settled, runs = settle(task, PLAN, pairs(PLAN, task, lost=lost))
    race = summarise(settled, PLAN, runs, PROVENANCE)
    text = tables.runs(settled, PLAN, runs)
    found = summary_of(text, tmp_path, maximize=task.maximize, proportion=task.proportion)
    for name, entry in race["entries"].items():
        assert found["entries"][name]["difference"] == entry["difference"]
        for key in ("test", "seeds", "units", "failed", "interquartile_mean"):
            assert found["entries"][name][key] == entry[key]
    assert words(found["verdict"]) == words(race["verdict"])
    assert found["baseline"] == race["baseline"]


def test_the_runs_of_a_race_in_looks_are_refused(tmp_path):
    looks = replace(PLAN, looks=(5, 7), repeats=3)
    _, result = pairs(PLAN)[-1]
    runs = [
        (Trial("digits", "fresh", entry, i, i, 100, {"lr": 0.1}), result)
        for entry in PLAN.entries
        for i in range(21)
    ]
    text = tables.runs(DIGITS, looks, runs)
    with pytest.raises(BadCall, match="of a race in looks, whose results decided"):
        summary_of(text, tmp_path)
    before = "\n".join(",".join(line.split(",")[:5] + line.split(",")[6:])
                       for line in text.splitlines())  # fmt: skip
    assert "unit" not in before
    with pytest.raises(BadCall, match="before it had the column 'unit': write it again"):
        summary_of(before, tmp_path)


# --- what is said is true

CASES = {
    "better": {"adamw": noise(6, 0)[0], "adam": noise(6, 9, seed=1)[0]},
    "undecided": {"adamw": noise(6, 0)[0], "adam": noise(6, 0, seed=1)[0]},
    "the same": {"adamw": noise(6, 0)[0], "adam": noise(6, 0)[0]},
    "few": {"adamw": noise(3, 0)[0], "adam": noise(3, 0, seed=1)[0]},
    "alone": {"adamw": noise(6, 0)[0]},
    "diverged": {"adamw": noise(6, 0)[0], "adam": [*noise(5, 0, seed=1)[0], math.nan]},
    "apart": {"adamw": [0.0] * 6, "adam": [1.0, 1.1, 0.9, 1.2, 0.8, 900.0]},
    "nothing": {"adamw": [-1.0] * 6, "adam": [-2.0] * 6},
}


@pytest.mark.parametrize("more", [{}, {"margin": 0.5}, {"worst": "-0.5"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_no_sentence_speaks_of_what_the_file_does_not_have(case, more, tmp_path):
    summary = summary_of(table(CASES[case]), tmp_path, **more)
    said = Page(report.page(summary)).text
    for word in ("tuning trial", "fresh", "Sobol", "target", "--seed", "--trials", "--search",
                 "--steps", "--optimizers", "default", "same initial weights", "at each look",
                 "Brien", "Tuned", "equal tuning", "Times", "one tuning"):  # fmt: skip
        assert word not in said, word
    assert "batches and initial weights could not be checked" in said
    assert "if no run was added, repeated or left out because of its result" in said
    assert summary["verdict"] in said
    assert "next" not in summary
    assert summary["lint"] == []
    assert wrong(summary, Summary) == []
    json.dumps(summary, allow_nan=False)


def test_what_gives_no_verdict(tmp_path):
    def verdict(case, **more):
        return summary_of(table(CASES[case]), tmp_path, **more)["verdict"]

    assert verdict("few") == (
        "Not enough seeds: n=3 seeds per entry, but a verdict needs at least 5; run more of them."
    )
    assert "adamw is the only entry in the file (n=6 seeds)" in verdict("alone")
    assert verdict("nothing", worst="0").startswith("Nothing was compared: every run (n=6 per")
    units = "\n".join(f"{e},{u},{s},{u + s}" for e in "ab" for u in range(4) for s in range(3))
    few = summary_of("entry,unit,seed,test\n" + units, tmp_path)
    assert "Not enough units: n=4 units" in few["verdict"]
    assert difference(few, "b")["n"] == 4
    assert not difference(few, "b")["claim"]


def test_a_run_no_better_than_worst_has_failed(tmp_path):
    values = {"adamw": [5.0, 6, 7, 8, 9, 8], "adam": [1.0, 7, 8, 9, 9, 2]}
    summary = summary_of(table(values), tmp_path, worst="2")
    assert summary["entries"]["adam"]["test"] == [2, 7, 8, 9, 9, 2]
    assert summary["entries"]["adam"]["failed"] == 2
    assert difference(summary, "adam")["exact"]
    assert any("2 of 12 runs ended no better than a run" in line for line in notes.caveats(summary))


def test_other_columns_are_shown_and_steps_compared(tmp_path):
    lines = [f"{e},{i},{i},0.5,{n}" for e, n in (("adamw", 100), ("sgd", 200)) for i in range(5)]
    summary = summary_of("\n".join(["entry,seed,test,validation,steps", *lines]), tmp_path)
    said = Page(report.page(summary)).text
    assert "did not all have the same number of steps: adamw 100, sgd 200." in said
    assert "What else was measured" in said
    assert "0.5 ± 0 (n=5)" in said
    same = summary_of("\n".join(["entry,seed,test,steps", *(f"{e},{i},1,7" for e in "ab"
                      for i in range(5))]), tmp_path)  # fmt: skip
    assert not any("did not all have" in line for line in notes.caveats(same))


def test_a_name_is_only_a_name(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
    names = ("adamw", "mine:Thing", "adam+warmup", "no such rule")
    summary = summary_of(table({name: noise(5, 0)[0] for name in names}), tmp_path)
    assert [entry["space"] for entry in summary["entries"].values()] == [None] * 4
    assert "mine:Thing" in Page(report.page(summary)).text


def test_the_baseline(tmp_path):
    values = noise(5, 0)[0]
    assert summary_of(table({"sgd": values, "AdamW": values}), tmp_path)["baseline"] == "AdamW"
    some = table({"sgd": values, "lion": values})
    assert summary_of(some, tmp_path)["baseline"] == "sgd"
    assert summary_of(some, tmp_path, baseline=" lion")["baseline"] == "lion"
    with pytest.raises(
        BadCall,
        match=r"--baseline lino is not an entry in .*expected one of sgd, lion; did you mean",
    ):
        summary_of(some, tmp_path, baseline="lino")


# --- awkward files

PLAIN = table({"adamw": [0.5, 0.625, 0.75], "sgd": [0.25, 0.375, -0.5]})
FITS = {
    "a BOM": b"\xef\xbb\xbf" + PLAIN.encode(),
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "CR": PLAIN.replace("\n", "\r"),
    "no last line end": PLAIN.rstrip(),
    "blank lines": "\n\n" + PLAIN.replace("\n", "\n ,, \n\n"),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "spaces": PLAIN.replace(",", " , "),
    "quotes": re.sub(r"[^,\n]+", r'"\g<0>"', PLAIN),
    "capitals": PLAIN.replace("entry,seed,test", "Entry,SEED, Test"),
    "seeds as floats": re.sub(r",(\d),", r",\g<1>.0,", PLAIN),
    "a long minus": PLAIN.replace("-0.5", "\N{MINUS SIGN}0.5"),
    "another order": "\n".join([PLAIN.split()[0], *PLAIN.split()[1:][::2], *PLAIN.split()[2::2]]),
    "more columns": PLAIN.replace("\n", ",\n").replace("test,", "test,note"),
    "empty cells at the end": PLAIN.replace("\n", ",,\n"),
    "no divergence": PLAIN.replace("\n", ",no\n").replace("test,no", "test,diverged"),
    "exponents": PLAIN.replace("0.5,", "5e-1,").replace("0.75", "75E-2"),
}


@pytest.mark.parametrize("case", FITS)
def test_the_same_runs_in_another_form(case, tmp_path):
    plain = summary_of(PLAIN, tmp_path)["entries"]
    found = summary_of(FITS[case], tmp_path)["entries"]
    assert {n: sorted(zip(e["seeds"], e["test"], strict=True)) for n, e in found.items()} == {
        n: sorted(zip(e["seeds"], e["test"], strict=True)) for n, e in plain.items()
    }


def test_percent_signs_are_a_share(tmp_path):
    text = "entry,seed,acc\n" + "\n".join(
        f"{e},{i},{v}{mark}" for e, v, mark in (("adamw", 91.5, "%"), ("sgd", 90, " %"))
        for i in range(5)
    )  # fmt: skip
    summary = summary_of(text, tmp_path, metric="acc", worst="10%")
    assert summary["proportion"]
    assert summary["entries"]["adamw"]["test"] == pytest.approx([0.915] * 5)
    assert summary["worst"] == pytest.approx(0.1)
    assert "on every seed: sgd by -1.50 points." in summary["verdict"]


def test_names_with_commas_lines_and_any_script(tmp_path):
    names = [
        'Lion, "tuned"',
        "Адам 学习",
        "two\nlines",
        "x" * 5000,
        "bell\a\x1b[31m",
        "=1+1",
        "[b]",
    ]
    text = "entry,seed,test\n" + "".join(
        f'"{name.replace(chr(34), chr(34) * 2)}",{i},{k + i % 3}\n'
        for k, name in enumerate(names)
        for i in range(5)
    )
    summary = summary_of(text, tmp_path)
    assert list(summary["entries"]) == [
        'Lion, "tuned"', "Адам 学习", "two lines", "x" * 5000, "bell[31m", "=1+1", "[b]"
    ]  # fmt: skip
    said = Page(report.page(summary)).text
    assert "Адам 学习" in said
    assert "\a" not in said


HEAD = "entry,seed,test\n"
UNIT = "entry,unit,seed,test\n"
BAD = {
    b"": ("empty file", "header"),
    b"\xef\xbb\xbf \n \n": ("empty file",),
    b"PK\x03\x04\xff\xfe\x00": ("no text in UTF-8", "CSV UTF-8"),
    PLAIN.encode("utf-16"): ("no text in UTF-8",),
    "entry,seed,test\nAdam\u00fc,0,1\n".encode("latin-1"): ("no text in UTF-8",),
    HEAD: ("header without rows",),
    "adamw,0,0.5\nadamw,1,0.6\n": ("no column 'entry' in the header (adamw, 0, 0.5)",),
    "optimizer,seed,test\na,0,1\n": ("no column 'entry'", "(optimizer, seed, test)"),
    "entry,sed,test\na,0,1\n": ("no column 'seed'", "did you mean 'sed'?"),
    "entry,seed,tset\na,0,1\n": ("no column 'test'", "--metric", "did you mean 'tset'?"),
    "entry,seed,test,Test\na,0,1,2\n": ("2 columns 'test'", "expected one"),
    HEAD + "a,0,\n": ("line 2", "no value", "nan if the run diverged"),
    HEAD + "a,0\n": ("line 2", "no value"),
    HEAD + "a,0,good\n": ("line 2: 'good': expected a number", "column 'test'"),
    HEAD + "a,0,0.9±0.1\n": ("'0.9±0.1'",),
    HEAD + "a,0,1_0\n": ("'1_0'",),
    HEAD + "a,0,N/A\n": ("'N/A'", "nan if"),
    HEAD + 'a,0,"1,234"\n': ("'1,234'", "such as 1234.5"),
    HEAD + "a,0,0,91\n": ("line 2: 4 cells, but the header has 3", "','"),
    "entry;seed;test\na;0;1.234,5\n": ("'1.234,5'",),
    "entry;seed;test\na;0;0,5\na;1;0.5\n": ("lines 2 and 3", "decimal comma"),
    HEAD + "a,0,50%\na,1,0.5\n": ("lines 2 and 3", "% in one"),
    HEAD + "a,0,150%\n": ("150% is no share", "line 2"),
    HEAD + "a,0,inf\n": ("line 2: inf is better than any number with --maximize",),
    HEAD + "a,0,1e999\n": ("better than any number",),
    HEAD + "a,0,nan\nb,0,nan\n": ("every run diverged",),
    HEAD + ",0,1\n": ("line 2", "no value in the column 'entry'"),
    HEAD + "a,,1\n": ("line 2", "no value in the column 'seed'"),
    UNIT + "a,,0,1\n": ("line 2", "no value in the column 'unit'"),
    HEAD + "a,0,1\nb,0,1\na,0,2\n": ("lines 2 and 4: two runs of a with seed 0", "'unit'"),
    HEAD + "a,0,1\na,0.0,2\n": ("two runs of a with seed 0",),
    UNIT + "a,0,0,1\na,0,0,1\n": ("two runs of a with unit 0, seed 0",),
    UNIT + "a,0,0,1\na,0,1,1\na,1,0,1\n": ("unit 1 has 1 and unit 0 has 2 runs",),
    UNIT + "a,0,0,1\na,1,0,1\nb,0,0,1\n": ("b lacks unit and seed 1/0",),
    HEAD + "a,0,1\na,1,1\na,2,1\nb,0,1\nb,3,1\n": (
        "a lacks seed 3; b lacks seed 1, 2", "add these runs", "take out the seed",
    ),
    HEAD + "a,0,1\nb,7,1\n": ("a lacks seed 7; b lacks seed 0", "number the runs of each entry"),
    HEAD + "".join(f"a,{i},1\n" for i in range(20)) + "b,0,1\n": ("1, 2, 3, 4, 5 and 14 more",),
    HEAD + 'a,0,1\n"b,1,2\n': ("line 3", "quotation mark"),
    HEAD + 'a,0,1\n"b"c,1,2\n': ("line 3", "no CSV"),
    HEAD + f"{'a' * 200_000},0,1\n": ("line 2", "field limit"),
    "entry,seed,test,diverged\na,0,1,nan\n": ("line 2: nan in the column 'diverged'",),
    "entry,unit,seed,test,phase,final_validation\na,0,0,1,tuning,1\n": (
        "no row has 'fresh'", "expected the runs.csv of a race",
    ),
    "entry,seed,test\na,0,1e200\n": ("1e200 is better than any number", "between -1e100 and 1e100"),
    "entry,seed,test,steps\na,0,1,many\n": ("'many'", "column 'steps'"),
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_an_awkward_file_gets_one_clear_line(text, tmp_path):
    with pytest.raises(BadCall) as caught:
        summary_of(text, tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert "sweep.csv'" in line
    assert all(word in line for word in BAD[text]), line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"worst": "soon"}, "--worst soon: expected the metric that a diverged run counts as"),
        ({"worst": "nan"}, "--worst nan"),
        ({"worst": "10%"}, "a number"),
        ({"worst": "7", "proportion": True}, "a share of 0 to 1, or 0% to 100%"),
        ({"metric": "seed"}, "--metric seed: expected the column with the metric"),
        ({"metric": "acc"}, "no column 'acc' in the header .* or --metric with another column"),
    ],
)
def test_options_that_do_not_fit_the_file(more, said, tmp_path):
    with pytest.raises(BadCall, match=said):
        summary_of(table({"adamw": [0.5, 0.25], "sgd": [0.5, 0.5]}), tmp_path, **more)
    with pytest.raises(BadCall, match=r"1.5 is no share: expected 0 to 1"):
        summary_of(table({"adamw": [0.5, 1.5]}), tmp_path, proportion=True)


def test_what_is_no_file(tmp_path):
    for name in ("nowhere.csv", "."):
        with pytest.raises(BadCall, match=r"cannot read .*expected a CSV file"):
            run_table.read(Source(tmp_path / name, "test", True))


def test_a_row_for_each_step_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_table, "MOST", 8)
    with pytest.raises(BadCall, match=r"more than 8 runs: .* no row for each step"):
        summary_of(table({"adamw": [1.0] * 9}), tmp_path)
    assert summary_of(table({"adamw": [1.0] * 8}), tmp_path)["runs"]["finished"] == 8
    monkeypatch.setattr(run_table, "MOST", 60)
    with pytest.raises(BadCall, match=r"51 names in the column 'entry': .*at most 50"):
        summary_of(table({f"run {i}": [1.0] for i in range(51)}), tmp_path)
    monkeypatch.setattr(imported, "MOST", 4)
    with pytest.raises(BadCall, match=r"5 runs of an entry: expected at most 4"):
        summary_of(table({"adamw": [1.0] * 5}), tmp_path)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_the_order_of_the_rows_changes_nothing(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("shuffled")
    metric = st.floats(-1e6, 1e6) | st.just(math.nan)
    lists = data.draw(st.lists(st.lists(metric, min_size=6, max_size=6), min_size=2, max_size=3))
    results = {f"e{k}": values for k, values in enumerate(lists)} | {
        "adamw": [float(i) for i in range(6)]
    }
    head, *lines = table(results).splitlines()
    shuffled = data.draw(st.permutations(lines))
    one, other = (summary_of("\n".join([head, *some]), path) for some in (lines, shuffled))
    for name in results:
        a, b = (sorted(zip(s["entries"][name]["seeds"], s["entries"][name]["test"], strict=True))
                for s in (one, other))  # fmt: skip
        assert a == b
        if name != "adamw":
            a, b = difference(one, name), difference(other, name)
            assert a["p"] == pytest.approx(b["p"], rel=1e-6, abs=1e-12)
            assert a["exact"] == b["exact"]


# --- the command


def call(*more, file="sweep.csv"):
    return cli.main(["race", "--import", file, *more])


def test_the_command_prints_the_verdict_and_writes_two_files(tmp_path, capsys):
    text = table({"adamw": noise(5, 0)[0], "sgd": noise(5, 50, seed=1)[0]}, "entry,seed,acc")
    (tmp_path / "sweep.csv").write_text(text.replace("\n", ",7\n").replace("acc,7", "acc,lr"))
    for _ in range(2):  # the same folder again
        assert call("--metric", "acc", "--maximize") == 0
        out, err = capsys.readouterr()
        assert "better than adamw in acc: sgd by" in out
        assert "race-sweep/report.html" in out
        assert "runs.csv" not in out
        assert err == "steepest: columns that were not read: lr\n"
    files = sorted(path.name for path in (tmp_path / "race-sweep").iterdir())
    assert files == ["report.html", "summary.json"]
    summary = json.loads((tmp_path / "race-sweep" / "summary.json").read_text())
    command = "steepest race --import sweep.csv --metric acc --maximize"
    assert summary["reproduce"] == summary["provenance"]["command"] == command
    with pytest.raises(BadCall, match="were imported, so it is not known when they reached"):
        profiles.read(tmp_path / "race-sweep")


def test_the_folder_of_a_race_is_left_alone(tmp_path, capsys):
    (tmp_path / "sweep.csv").write_text(table(FIVE))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.db").touch()
    assert call("--minimize", "--out", "mine") == 2
    assert "'mine' has other files (study.db)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["study.db"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("race --import sweep.csv", "without a direction: give --maximize if more of test is"),
        ("race digits --import sweep.csv --minimize", "with task: an import runs nothing itself"),
        ("race --import sweep.csv --minimize --seeds 5", "with --seeds: an import runs nothing"),
        ("race --import sweep.csv --minimize --plan", "leave --plan out"),
        ("race digits --worst 3", "--worst without --import"),
        ("race digits --minimize", "--maximize/--minimize without --import"),
        ("race digits --metric test", "--metric without --import"),
        ("race --import", "--import"),
        ("race --import nowhere.csv --minimize", "cannot read 'nowhere.csv'"),
    ],
)
def test_options_that_exclude_each_other(words, said, tmp_path, capsys):
    (tmp_path / "sweep.csv").write_text(table(FIVE))
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]


def test_a_column_of_another_file_that_is_called_phase_leaves_no_run_out(tmp_path):
    lines = [
        f"{e},{i},{v!r},{'fresh' if i < 3 else 'rerun'}"
        for e in FIVE
        for i, v in enumerate(FIVE[e])
    ]
    path = tmp_path / "sweep.csv"
    path.write_text("\n".join(["entry,seed,test,phase", *lines]))
    runs = run_table.read(Source(path, "test", True, False))
    assert len(runs.rows) == 10
    assert runs.unread == ["phase"]


def test_a_loss_beyond_any_number_has_diverged(tmp_path):
    values = {"adamw": [1.0, 2.0, 1.5, 1.2, 1.1], "sgd": [1e200, 2.0, 3.0, 1.0, 2.5]}
    summary = summary_of(table(values), tmp_path, maximize=False)
    assert summary["entries"]["sgd"]["failed"] == 1
    json.dumps(summary, allow_nan=False)


def test_seeds_that_are_no_numbers_are_counted(tmp_path):
    lines = [f"{e},{seed},{i}" for e in FIVE for i, seed in enumerate("a0x7b")]
    summary = summary_of("\n".join(["entry,seed,test", *lines]), tmp_path)
    assert summary["entries"]["sgd"]["seeds"] == [0, 1, 2, 3, 4]
