"""What a summary holds and says: verdict, caveats, numbers, on races that were never run."""

import csv
import importlib
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from steepest.race import figures, measured, planning, report, tables, terminal
from steepest.race.notes import OWN, caveats
from steepest.race.outcomes import settle
from steepest.race.phrases import UNKNOWN, number
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial
from steepest.race.results_table import columns, rows
from steepest.race.summary import _curve, summarise
from steepest.race.verdicts import verdict
from tests.race.invented import DIGITS, FIELD, LOSS, PROVENANCE, pairs, race
from tests.report.page import Page

PLAN = Plan("digits", ("adamw", "adam", "momentum"), trials=1, seeds=6, steps=2, seed=0)


def made_up(tests, plan=PLAN, diverged=None, task=DIGITS):
    """A summary of invented runs: entry -> test metric per seed, which its trials reached too."""
    pairs = [
        (
            Trial(plan.task, phase, entry, i, i, plan.steps, {"lr": 0.1}),
            Result(
                [1, 2], [0.9, v], [0.5, 1.0], v if phase == FRESH else None, diverged, 1, 2, 8, 4
            ),
        )
        for entry, values in tests.items()
        for phase, copies in ((TUNING, plan.trials), (FRESH, 1))
        for i, v in enumerate(v for v in values for _ in range(copies))
    ]
    return summarise(task, plan, pairs, PROVENANCE)


EVEN = [0.90, 0.91, 0.92, 0.93, 0.94, 0.96]
UNEVEN = [0.96, 0.90, 0.93, 0.91, 0.92, 0.94]


def test_the_verdict_names_what_is_better_and_what_is_not_told_apart():
    summary = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [v + 0.03 for v in UNEVEN]})
    better = made_up(
        {"adamw": EVEN, "adam": UNEVEN, "momentum": [v + 0.03 + 1e-4 * v for v in EVEN]}
    )
    assert "undecided: no entry can be told apart from adamw" in summary["verdict"]
    assert "n=6" in summary["verdict"]
    assert "better than adamw in test accuracy: momentum by 3.01 points" in better["verdict"]
    assert "Undecided: adam is not told apart from adamw." in better["verdict"]
    assert ": at n=6 fresh seeds, untuned, one entry is better" in better["verdict"]
    worse = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [0.5 * v for v in EVEN]})
    assert "worse than adamw in test accuracy: momentum by 46.33 points" in worse["verdict"]


def test_direction_of_the_metric():
    summary = made_up({"adamw": EVEN, "adam": UNEVEN, "momentum": [0.5 * v for v in EVEN]})
    assert [row[0] for row in rows(summary)][-1] == "momentum"
    down = {**summary, "maximize": False}
    assert "better than adamw in test accuracy: momentum" in verdict(down)
    assert rows(down)[0][0] == "momentum"


def test_too_few_seeds_and_no_rival_give_no_verdict():
    few = {"adamw": EVEN[:4], "adam": UNEVEN[:4], "momentum": [0.1] * 4}
    assert made_up(few, replace(PLAN, seeds=4))["verdict"].startswith("Not enough seeds: n=4")
    alone = made_up({"adamw": EVEN}, replace(PLAN, entries=("adamw",)))
    assert "nothing to compare" in alone["verdict"]
    partial = made_up({"adamw": EVEN, "adam": UNEVEN[:2]})
    assert partial["verdict"] == "No verdict: 16 of 36 runs are finished."
    assert partial["entries"]["momentum"]["test"] == []
    nothing = made_up({})
    assert nothing["verdict"] == "No verdict: 0 of 36 runs are finished."
    for summary in (alone, partial, nothing):
        assert summary["verdict"] in Page(report.page(summary)).text
        assert len(rows(summary)) == len(summary["entries"])


def test_equal_runs_are_no_nan():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": [v + 0.01 for v in EVEN]})
    text = json.dumps(summary, allow_nan=False)
    assert "NaN" not in text
    assert any("sign test" in line for line in caveats(summary))


def test_what_is_the_same_on_every_seed_has_no_interval():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": EVEN})
    assert summary["verdict"].endswith(". The same as adamw on every seed: adam, momentum.")
    assert "keep" not in summary["verdict"]  # untuned
    assert "remains possible" not in summary["verdict"]
    assert summary["entries"]["adam"]["difference"]["low"] is None
    assert {row[0]: row[3] for row in rows(summary)}["adam"] == "+0.00 on every seed"
    five = [v[:5] for v in (EVEN, [v + 0.25 for v in EVEN])]
    shifted = made_up(
        dict(zip(("adamw", "adam"), five, strict=True)),
        replace(PLAN, entries=("adamw", "adam"), seeds=5),
    )
    assert "same difference to adamw on every seed: adam by +25.00 points." in shifted["verdict"]


def test_an_interval_of_shares_ends_at_all():
    tests = {"adamw": [0.01, 0.99] * 3, "adam": [0.99, 0.01] * 3, "momentum": EVEN}
    d = made_up(tests)["entries"]["adam"]["difference"]
    assert (d["low"], d["high"]) == (-1, 1)


def test_a_partial_report_says_what_was_run():
    plan = replace(PLAN, entries=("adamw", "adam"), trials=4, seeds=6)
    summary = made_up({"adamw": EVEN[:2], "adam": UNEVEN[:1]}, plan)
    said = caveats(summary)[0]
    assert "So far each entry had 4 to 8 of 24 planned tuning trials of 2 steps, 4 for" in said
    assert "1 to 2 of 6 planned fresh seeds, each with the best of its trials" in said
    text = Page(report.page(summary)).text
    assert "Median and quartiles of n=1 to 2 of 6 planned fresh seeds" in text
    assert "n=4 to 8 of 24 planned per entry" in text
    assert "1 to 2 of 6 planned fresh seeds" in str(terminal._table(summary, 120).title)


def test_a_curve_by_hand():
    def run(*values, diverged=None):
        return Result(list(range(1, len(values) + 1)), list(values), diverged=diverged)

    results = [run(0.1, 0.5), run(0.2, 0.6), run(0.3, 0.9), run(0.4, diverged="nan")]
    curve = _curve(DIGITS, results)  # the diverged one counts as 0 from then on
    assert curve["steps"] == [1, 2]
    assert curve["median"] == pytest.approx([0.25, 0.55])
    assert curve["low"] == pytest.approx([0.175, 0.375])
    assert curve["high"] == pytest.approx([0.325, 0.675])


def test_claims_hold_together_and_intervals_alone():
    said = " ".join(caveats(race()))
    assert "each at the confidence level from Holm's correction over 4 comparisons." in said
    assert "The chance of any false claim in this race is at most 5 %" in said


def test_target_is_reached_at_the_first_evaluation_that_meets_it():
    tests = {"adamw": EVEN, "adam": UNEVEN, "momentum": [0.95] * 6}
    summary = made_up(tests, task=replace(DIGITS, target=0.95))
    assert summary["entries"]["adamw"]["steps_to_target"] == [None] * 5 + [2]
    assert summary["entries"]["momentum"]["steps_to_target"] == [2] * 6
    assert summary["entries"]["momentum"]["timing"]["seconds_to_target"] == [1.0] * 6
    assert {row[0]: row[4] for row in rows(summary)} == {
        "adamw": "> 2 (1/6)", "adam": "> 2 (1/6)", "momentum": "2 (6/6)",
    }  # fmt: skip


def test_diverged_runs_are_counted_and_said():
    summary = made_up({"adamw": EVEN, "adam": EVEN, "momentum": [0.0] * 6}, diverged="nan")
    assert any("18 of 18 fresh runs diverged" in line for line in caveats(summary))
    assert summary["entries"]["adam"]["steps_to_target"] == [None] * 6
    assert summary["entries"]["adam"]["validation"] == [0.0] * 6
    report.page(summary)  # curves without a single run to draw


def test_a_diverged_run_is_the_worst_of_the_race_in_every_number():
    task, plan = replace(LOSS, worst=5.0), replace(PLAN, entries=("adamw", "adam"))
    runs = [
        (
            Trial("digits", phase, entry, i, i, 2, {"lr": 0.1}),
            Result([1], [7.0 + i if phase == FRESH else 4e33], [0.5], phase == FRESH and 8.0 + i)
            if entry == "adamw"
            else Result([1], [6.0], [0.5], diverged="nan"),
        )
        for phase in (TUNING, FRESH)
        for entry in plan.entries
        for i in range(6)
    ]
    # measured: as bad as the worst of a fresh run that ended, and no tuning run's
    seen, _ = settle(replace(task, measured=5.0), plan, runs)
    assert seen.worst == 13.0
    assert settle(replace(task, worst=50.0, measured=50.0), plan, runs)[0].worst == 50.0
    up = replace(task, worst=9.0, measured=9.0, maximize=True)
    assert settle(up, plan, runs)[0].worst == 7.0
    said, _ = settle(task, plan, runs)
    assert said.worst == 5.0  # somebody has said it: what is worse counts as that
    clamped = summarise(said, plan, runs, PROVENANCE)["entries"]["adamw"]
    assert clamped["test"] == clamped["validation"] == [5.0] * 6
    assert {trial["validation"] for trial in clamped["tuning"]} == {5.0}
    assert clamped["curve"]["median"] == [5.0]
    assert (clamped["failed"], clamped["diverged"]["fresh"]) == (6, 0)
    adam = summarise(seen, plan, runs, PROVENANCE)["entries"]["adam"]
    assert adam["test"] == adam["validation"] == [13.0] * 6
    assert adam["interquartile_mean"] == adam["tuning"][0]["validation"] == 13.0
    assert adam["difference"]["exact"]
    assert adam["difference"]["mean"] > 0
    for row in csv.DictReader(io.StringIO(tables.runs(seen, PLAN, runs))):
        if row["entry"] == "adam":
            assert (row["test"] == "13.0") == (row["phase"] == "fresh")


def raced_to(ends, maximize=False, measured=2.3, lost=()):
    """The summary of a task without WORST; `ends`: entry -> the metric that each seed ended at."""
    sign = -1 if maximize else 1
    task = replace(
        LOSS, maximize=maximize, worst=sign * measured, measured=sign * measured, target=None
    )
    plan = replace(PLAN, entries=tuple(ends), seeds=10, trials=5)
    runs = [
        (
            Trial("digits", phase, entry, i, i, 2, {"lr": 0.1}),
            Result(
                [1, 2], [sign * measured, sign * end], [0.1, 0.2],
                sign * end if phase == FRESH else None,
                diverged="nan" if phase == FRESH and (entry, i) in lost else None,
            ),
        )
        for phase, copies in ((TUNING, plan.trials), (FRESH, 1))
        for entry, values in ends.items()
        for i, end in enumerate(v for v in values for _ in range(copies))
    ]  # fmt: skip
    task, settled = settle(task, plan, runs)
    return summarise(task, plan, settled, PROVENANCE), settled


LOSSES = [0.30, 0.31, 0.29, 0.305, 0.295, 0.32, 0.28, 0.302, 0.298, 0.311]
FIELD3 = {
    "adamw": LOSSES,
    "adam": [v - 0.05 - 0.001 * i for i, v in enumerate(LOSSES)],
    "momentum": [v + 0.01 * (-1) ** i for i, v in enumerate(LOSSES)],
}


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("wreck", list(FIELD3))
def test_one_run_that_blew_up_moves_nobody_elses_numbers(wreck, maximize):
    other = next(name for name in FIELD3 if name != wreck)
    ends = FIELD3 | {wreck: [*FIELD3[wreck][:3], 4e33, *FIELD3[wreck][4:]]}
    found, settled = raced_to(ends, maximize, lost={(other, 5)})
    known, _ = raced_to(FIELD3, maximize, lost={(other, 5), (wreck, 3)})
    # it has diverged, and no number of anybody is another one
    assert found["entries"][wreck]["failed"] == found["entries"][wreck]["diverged"]["fresh"] == 1
    assert abs(found["worst"]) == 2.3
    for name, entry in found["entries"].items():
        assert entry["test"] == known["entries"][name]["test"]
        assert entry["difference"] == known["entries"][name]["difference"]
    assert found["verdict"] == known["verdict"]
    assert "e+33" not in found["verdict"]
    reasons = {(t.entry, t.index): r.diverged for t, r in settled if t.phase == FRESH}
    assert "ended at" in reasons.pop((wreck, 3))
    assert {key for key, why in reasons.items() if why} == {(other, 5)}
    assert not any(r.diverged for t, r in settled if t.phase == TUNING)


@pytest.mark.parametrize(
    ("ends", "measured", "worst"),
    [
        (FIELD3 | {"momentum": [8.0 + v for v in LOSSES]}, 2.3, 8.32),  # bad on every seed
        (FIELD3 | {"momentum": [*LOSSES[:9], 60.0]}, 2.3, 60.0),  # one collapse
        (FIELD3 | {"momentum": [1e11] * 10}, 2.3, 1e11),  # far off, and still a number
        (FIELD3 | {"momentum": [0.5] * 10}, 0.299, 0.5),  # a model that was good before
        ({"adamw": [0.3] * 10, "adam": [0.3] * 9 + [0.4]}, 0.3, 0.4),  # nothing to measure by
    ],
)
def test_runs_that_are_only_bad_have_not_blown_up(ends, measured, worst):
    found, _ = raced_to(ends, measured=measured)
    assert {entry["failed"] for entry in found["entries"].values()} == {0}
    assert found["worst"] == worst
    assert [entry["test"] for entry in found["entries"].values()] == list(ends.values())


def test_an_entry_that_always_blows_up_has_failed_on_every_seed():
    found, _ = raced_to(FIELD3 | {"momentum": [4e33] * 10})
    assert found["entries"]["momentum"]["failed"] == 10
    assert found["entries"]["momentum"]["test"] == [2.3] * 10
    assert "worse than adamw" in found["verdict"]


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("seeds", [1, 2, 5, 10])
def test_most_runs_of_the_baseline_reach_a_target_that_nobody_said(maximize, seeds):
    plan = replace(PLAN, entries=("adamw",), seeds=seeds)
    ends = [0.5 + 0.01 * ((7 * i) % seeds) for i in range(seeds)]
    runs = [
        (Trial("digits", FRESH, "adamw", i, i, 2, {"lr": 0.1}), Result([2], [v], [0.1], v))
        for i, v in enumerate(ends)
    ]
    task = replace(DIGITS, target=None, maximize=maximize, worst=1 - maximize)
    seen, _ = settle(task, plan, runs)
    assert seen.target in ends
    reached = summarise(seen, plan, runs, PROVENANCE)["entries"]["adamw"]["steps_to_target"]
    assert sum(at == 2 for at in reached) / seeds >= 0.75
    assert seeds < 5 or None in reached


def test_a_target_that_nobody_said_favours_nobody():
    # the same optimizer twice; a curve that rises to an end of its own luck
    rng, steps, races = np.random.default_rng(0), list(range(1, 21)), 300
    plan, first = replace(PLAN, entries=("adamw", "adam"), seeds=10), [0, 0]
    for _ in range(races):
        ends = rng.normal(0.9, 0.01, (2, 10))
        runs = [
            (
                Trial("digits", FRESH, entry, i, i, 20, {"lr": 0.1}),
                Result(steps, [end * (1 - math.exp(-k / 4)) for k in steps], [0.1] * 20, end),
            )
            for entry, mine in zip(plan.entries, ends, strict=True)
            for i, end in enumerate(mine)
        ]
        seen, _ = settle(replace(DIGITS, target=None), plan, runs)
        found = summarise(seen, plan, runs, PROVENANCE)["entries"]
        base, rival = (
            sum(math.inf if s is None else s for s in found[e]["steps_to_target"])
            if None not in found[e]["steps_to_target"]
            else 1000 + sum(s is None for s in found[e]["steps_to_target"])
            for e in plan.entries
        )
        first[0] += base < rival
        first[1] += rival < base
    low, high = binom.ppf([0.005, 0.995], sum(first), 0.5)
    assert low <= first[0] <= high
    assert sum(first) > races / 2


@pytest.mark.parametrize("size", [1.0, 1e-14])
def test_a_verdict_does_not_depend_on_the_unit_of_the_metric(size):
    tests = {"adamw": EVEN, "adam": UNEVEN, "momentum": [0.5 * v for v in EVEN]}
    small = {entry: [size * v for v in values] for entry, values in tests.items()}
    found = made_up(small, task=replace(LOSS, worst=9.0))["entries"]
    assert found["momentum"]["difference"]["claim"]
    assert found["adam"]["difference"]["low"] is not None


BASE = [0.951, 0.949, 0.9505, 0.9495, 0.952, 0.948, 0.9503, 0.9497, 0.9511, 0.9489]
BETTER = [v + 0.01 + 1e-4 * i for i, v in enumerate(BASE)]
TEN = replace(PLAN, entries=("adamw", "adam"), seeds=10, trials=5)


def test_one_collapse_that_is_no_failure_does_not_turn_the_verdict():
    for end in (0.0888, 0.3):
        summary = made_up({"adamw": [*BASE[:3], end, *BASE[4:]], "adam": BETTER}, TEN)
        assert summary["entries"]["adamw"]["failed"] == 0
        assert "better than adamw in test accuracy: adam" in summary["verdict"]
        said = " ".join(caveats(summary))
        assert "One seed stands far from the others (adam), so the exact sign-flip test" in said
        assert "Two-sided exact intervals" in said
    # and a rival that nobody can tell apart is not kept out by a spread that one run decides
    noise = [v + 0.004 * (-1) ** i + 0.0005 for i, v in enumerate(BASE)]
    undecided = made_up({"adamw": [*BASE[:3], 0.0888, *BASE[4:]], "adam": noise}, TEN)
    assert "keep" not in undecided["verdict"]


def test_where_every_run_failed_nothing_is_compared():
    for ends in ({"diverged": "nan"}, {}):
        summary = made_up({"adamw": [0.0] * 10, "adam": [0.0] * 10}, TEN, **ends)
        assert summary["verdict"].startswith("Nothing was compared: every fresh run (n=10 per")
        assert "keep" not in summary["verdict"]
    assert any("20 of 20 fresh runs ended no better than a run" in x for x in caveats(summary))


def test_a_baseline_that_ended_at_the_worst_is_not_kept():
    worse = [v - 0.2 for v in BASE]
    summary = made_up({"adamw": [0.0, *BASE[1:]], "adam": [0.0, *worse[1:]]}, TEN)
    assert "worse than adamw" in summary["verdict"]
    assert "keep" not in summary["verdict"]


def test_failure_is_counted_as_it_is_tested():
    summary = made_up({"adamw": BASE, "adam": [0.0, *BETTER[1:]]}, TEN)
    found = summary["entries"]["adam"]
    assert (found["failed"], found["diverged"]["fresh"]) == (1, 0)
    assert found["diverged"]["fresh_rate_up_to"] == pytest.approx(0.394, abs=1e-3)
    said = " ".join(caveats(summary))
    assert "A run failed (adam failed on 1 of 10), so the exact" in said
    assert "adam: 1 of n=10 fresh runs failed" in said
    both = " ".join(caveats(made_up({"adamw": [0.0, *BASE[1:]], "adam": [0.0, *BETTER[1:]]}, TEN)))
    assert "Every entry: 1 of n=10 fresh runs each failed" in both


def test_one_number_of_failed_runs_is_shown_everywhere():
    ends = {"adamw": BASE, "adam": [0.0, 0.0, *BETTER[2:]]}  # no better than WORST, and finite
    summary = made_up(ends, TEN)
    assert columns(summary)[-1] == "failed"
    assert [row[-1] for row in rows(summary)] == ["0/10 (0/50)", "2/10 (0/50)"]
    text = " ".join(Page(report.page(summary)).text.split())
    assert "adam (untuned, 2 of 10 failed)" in text
    assert "2/10 (0/50)" in text
    assert "Failed: fresh runs that diverged, or ended no better than" in text
    shown = terminal._table(summary, 120)
    assert str(shown.columns[-1].header) == "failed"
    assert [str(cell) for cell in shown.columns[-1].cells] == ["0/10 (0/50)", "2/10 (0/50)"]
    plan = replace(TEN, trials=1)
    with terminal.Progress(DIGITS, plan) as progress:
        for i, end in enumerate(ends["adam"]):
            trial = Trial("digits", FRESH, "adam", i, i, 2, {"lr": 0.1})
            progress.advance(trial, Result([2], [0.9], [0.1], end))
        assert "2 failed" in progress._line()


def test_too_few_pairs_have_no_interval_and_are_not_the_same_on_every_seed():
    five = replace(TEN, seeds=5)
    summary = made_up({"adamw": [0.0, *BASE[1:5]], "adam": BETTER[:5]}, five)
    cell = {row[0]: row[3] for row in rows(summary)}["adam"]
    assert "(no interval: n too small)" in cell
    assert "every seed" not in cell + summary["verdict"]


def test_an_improvement_within_the_spread_of_seeds_is_undecided():
    rng = np.random.default_rng(1)
    base = rng.normal(0.9, 0.02, 10)
    rival = base + 0.002 + rng.normal(0, 0.006, 10)
    summary = made_up({"adamw": base.tolist(), "adam": rival.tolist()}, TEN)
    d = summary["entries"]["adam"]["difference"]
    assert d["low"] < 0 < d["mean"] < d["high"] < 0.02
    assert summary["verdict"].startswith("Undecided")


def test_with_a_measured_worst_only_what_diverged_has_failed():
    pretrained = replace(DIGITS, worst=0.97, measured=0.97)
    summary = made_up({"adamw": BASE, "adam": BETTER}, TEN, task=pretrained)
    assert [e["failed"] for e in summary["entries"].values()] == [0, 0]


# --- numbers


SHARE, PLAIN = {"proportion": True}, {"proportion": False}


@pytest.mark.parametrize(
    ("kind", "value", "plain", "signed"),
    [
        (SHARE, -0.00001, "0.00", "+0.00"),
        (SHARE, 0.00001, "0.00", "+0.00"),
        (SHARE, -0.0, "0.00", "+0.00"),
        (SHARE, -0.00006, "-0.01", "-0.01"),
        (SHARE, 0.98765, "98.77", "+98.77"),
        (PLAIN, -0.0, "0", "+0"),
        (PLAIN, -1e-7, "-1e-07", "-1e-07"),
        (PLAIN, 12.3456, "12.35", "+12.35"),
    ],
)
def test_a_number_that_is_shown_as_zero_has_no_minus(kind, value, plain, signed):
    assert number(kind, value) == plain
    assert number(kind, value, signed=True) == signed


@given(st.floats(-1e6, 1e6), st.booleans())
def test_a_signed_number_always_has_its_sign(value, proportion):
    text = number({"proportion": proportion}, value, signed=True)
    assert text[0] == ("-" if float(text) < 0 else "+")
    assert abs(float(text) - value * (100 if proportion else 1)) <= 0.005 + 1e-3 * abs(value)


# --- what was tuned

A = [
    [(1e-3, 0.90), (1e-2, 0.95), (1e-1, 0.5)],  # 0 decades
    [(1e-3, 0.95), (1e-2, 0.949), (1e-1, 0.5)],  # 1
    [(1e-4, 0.5), (1e-3, 0.95), (1e-1, 0.95)],  # 2
    [(1e-3, 0.955), (1e-2, 0.96), (1e-1, None)],  # 1: what diverged does not count
    [(1e-4, 0.8), (3e-3, 0.9), (1e-1, 0.2)],  # 0
]
B = [*A[:2], [(1e-4, 0.5), (1e-3, 0.95), (1e-1, 0.2)], *A[3:]]  # 0 in place of the third
C = [*A[:4], [(1e-4, None), (3e-3, None), (1e-1, None)]]


@pytest.mark.parametrize(
    ("turns", "chosen", "lr", "width"),
    [
        (A, [1, 3, 7, 10, 13], [1e-3, 3e-3, 1e-2], (1.0, 5)),
        (B, [1, 3, 7, 10, 13], [1e-3, 3e-3, 1e-2], (0.0, 5)),
        (C, [1, 3, 7, 10, 12], [1e-4, 1e-3, 1e-2], (1.0, 4)),
    ],
)
def test_choices_and_widths_by_hand(turns, chosen, lr, width):
    plan = Plan("digits", ("adamw",), trials=3, seeds=5, steps=2, seed=0)
    tuned = [
        (
            Trial("digits", TUNING, "adamw", i, i, 2, {"lr": rate}),
            Result([2], [score or 0.0], [0.1], diverged=None if score else "nan"),
        )
        for i, (rate, score) in enumerate(point for turn in turns for point in turn)
    ]
    found = summarise(DIGITS, plan, tuned, PROVENANCE)["entries"]["adamw"]
    assert found["chosen"] == chosen
    assert found["hyperparameters"] == {"lr": lr}
    seen, tunings = width
    assert found["lr_width"] == {"seen": pytest.approx(seen), "tunings": tunings, "points": 3}
    # before the last trial there is no choice, and the widths are those of what was tried
    early = summarise(DIGITS, plan, tuned[:4], PROVENANCE)["entries"]["adamw"]
    assert (early["chosen"], early["hyperparameters"], early["trials"]) == (None, None, 4)
    assert early["lr_width"]["tunings"] == 2


def test_the_middle_of_an_even_number_of_choices_is_one_of_them():
    summary = race()
    for entry in summary["entries"].values():
        rates = sorted(entry["tuning"][i]["hyperparameters"]["lr"] for i in entry["chosen"])
        assert len(rates) == 6
        assert entry["hyperparameters"]["lr"] == [rates[0], rates[2], rates[5]]


def test_a_better_trial_of_another_seed_changes_no_choice():
    plan = Plan("digits", FIELD, 6, 6, 400, 0)
    runs = pairs(plan)
    before = summarise(DIGITS, plan, runs, PROVENANCE)["entries"]
    chosen = before["eadam"]["chosen"]
    better = 12 if chosen[2] != 12 else 13  # of 12 to 17, for the third seed
    at = next(i for i, (t, _) in enumerate(runs) if t.key == (TUNING, "eadam", better))
    runs[at] = runs[at][0], replace(runs[at][1], validation=[1.0] * 20)
    after = summarise(DIGITS, plan, runs, PROVENANCE)["entries"]
    chosen[2] = better
    assert {e: found["chosen"] for e, found in after.items()} == {
        e: found["chosen"] for e, found in before.items()
    }


@pytest.mark.parametrize("done", [0, 3, 40, 100, 181, 209])
def test_an_interrupted_race_is_summed_up_and_not_judged(done):
    plan = Plan("digits", FIELD, 6, 6, 400, 0)
    summary = summarise(DIGITS, plan, pairs(plan)[:done], PROVENANCE)
    json.dumps(summary, allow_nan=False)
    assert not summary["complete"]
    assert summary["runs"] == {"finished": done, "planned": 210}
    assert summary["verdict"] == f"No verdict: {done} of 210 runs are finished."
    assert summary["lint"] == []
    for i, entry in enumerate(summary["entries"].values()):
        assert entry["difference"] is None
        assert (entry["chosen"] is None) == (done < 36 * (i + 1))
        assert (entry["lr_width"] is None) == (done <= 36 * i)
    assert len(caveats(summary)) >= 1


# --- in words


def test_the_verdict_says_how_it_was_tuned():
    assert "At n=6 fresh seeds with 6 tuning trials each, " in race()["verdict"]
    said = caveats(race())[0]
    assert "For each of 6 fresh seeds, every entry had 6 tuning trials of 400 steps" in said
    assert "untuned" in race(trials=1)["verdict"]
    assert "tuning trial" not in race(trials=1)["verdict"] + " ".join(caveats(race(trials=1)))


ODD = {
    "usual": {},
    "a loss": {"task": LOSS},
    "untuned": {"trials": 1},
    "one seed": {"trials": 2, "seeds": 1},
    "one of all": {"trials": 1, "seeds": 1, "steps": 1, "evaluations": 2},
    "alone": {"names": ("adamw",), "trials": 2, "seeds": 1},
    "included": {"names": ("sgd", "momentum", "asgd", "adabound", "adam")},
    "one tuned in vain": {"lost": [("tuning", "momentum", i) for i in range(36)]},
    "all lost": {"lost": [("fresh", e, i) for e in FIELD for i in range(6)]},
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_said_is_well_said(case):
    summary = race(**ODD[case])
    lines = [summary["verdict"], *caveats(summary)]
    sentences = [x for line in lines for x in re.split(r"(?<=\.)\s+(?=[A-Z])", line)]
    assert len(set(sentences)) == len(sentences)
    for line in lines:
        assert re.match(rf"[A-Z0-9]|({'|'.join(summary['entries'])})\b", line), line
        assert line.endswith(".")
    plan = Plan(**{**summary["plan"], "entries": tuple(summary["plan"]["entries"])})
    lines += [planning.describe(plan, 1, 1.0, 1.0), str(terminal._table(summary, 120).title)]
    lines += [figure.text for figure in figures.figures(summary)]
    many = r"(?<![\d.,])(?<!of )1 (\w+ )?(seeds|trials|points|steps|runs|knobs|tunings|entries)\b"
    assert not [line for line in lines if re.search(many, line)]


def test_one_of_each_is_in_the_singular():
    summary = summarise(
        DIGITS, plan := Plan("digits", ("adamw",), 1, 1, 1, 0), pairs(plan), PROVENANCE
    )
    assert "(n=1 fresh seed)" in summary["verdict"]
    said = caveats(summary)[0]
    assert "for 1 step on 1 fresh seed;" in said
    partial = summarise(DIGITS, plan, pairs(plan)[:1], PROVENANCE)
    said = caveats(partial)[0]
    assert "had 1 tuning trial of 1 step, 1 for each fresh seed, and 0 of 1 planned fresh" in said


def test_gradients_are_the_median_of_the_runs_that_ended():
    plan = Plan("digits", ("adamw", "momentum"), 1, 3, 100, 0)
    runs = pairs(plan, lost=[("fresh", "momentum", 1)])
    for trial, result in runs:
        if trial.entry == "momentum":
            result.measures = {"gradients": 3.0 if result.diverged else 200.0 + trial.index}
    found = summarise(DIGITS, plan, runs, PROVENANCE)
    assert found["entries"]["adamw"]["gradients"] is None
    assert found["entries"]["momentum"]["gradients"] == 201.0
    assert "gradients" in columns(found)
    cells = {row[0]: row[columns(found).index("gradients")] for row in rows(found)}
    assert cells == {"adamw": UNKNOWN, "momentum": "201"}
    found["entries"]["momentum"]["gradients"] = 100.0  # a step is a gradient: nothing to say
    assert "gradients" not in columns(found)


@pytest.mark.parametrize("entry", ["adam", "adam+curriculum"])
def test_what_is_paired_is_said(entry):
    found = race(dict.fromkeys(["adamw", entry, "momentum"]))
    loop = dict.fromkeys(["adamw", entry, "momentum"], measured.OWN_LOOP)
    away = "batches up to step 50 differ from those of adamw"
    for checked, unchecked, unpaired, said in (
        ([], loop, {}, "checked; batches unchecked (the task has its own training loop, which ord"),
        (["adamw", "momentum"], {entry: OWN}, {}, f"(unchecked for {entry}, which choose"),
        (
            ["adamw", "momentum"],
            {entry: "ended early"},
            {},
            f"batches, checked (unchecked for {entry}: ended",
        ),
        (["adamw", entry, "momentum"], {}, {}, "same initial weights and batches, checked. "),
        (["adamw"], {entry: OWN}, {}, f"weights, checked; batches unchecked for {entry}, which"),
        ([], {}, {}, "same initial weights, checked. "),  # stored before more was kept
        (
            ["adamw", "momentum"],
            {},
            {entry: away},
            f"batches, checked; {entry} is not paired: its {away}. ",
        ),
    ):
        found |= {
            "batches_checked": checked, "batches_unchecked": unchecked, "batches_unpaired": unpaired
        }  # fmt: skip
        line = next(line for line in caveats(found) if line.startswith("Differences are paired"))
        assert said in line


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("caveats", "notes"),
        ("verdict", "verdicts"),
        ("rows", "results_table"),
        ("number", "phrases"),
    ],
)
def test_an_old_name_goes_on_for_this_release(name, module):
    with pytest.warns(DeprecationWarning, match=f"{name} is now steepest.race.{module}.{name}"):
        old = getattr(importlib.import_module("steepest.race.wording"), name)
    assert old is getattr(importlib.import_module(f"steepest.race.{module}"), name)
    with pytest.raises(AttributeError, match="no attribute '_small'"):
        importlib.import_module("steepest.race.wording")._small  # noqa: B018
