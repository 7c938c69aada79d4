"""A race in looks: which entries go on, what each look uses, and what the verdict says."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.errors import BadCall
from steepest.race import planning, protocol, request, rounds, statements
from steepest.race.notes import caveats
from steepest.race.protocol import FRESH, Plan, Result
from steepest.race.request import Request
from steepest.race.results_table import columns, rows
from steepest.race.summary import summarise
from steepest.statistics.looks import at_look, bounds, standing
from tests.race.invented import DIGITS, LOSS, PROVENANCE

NAMES = ("adamw", "momentum", "adam", "eadam")
SD = 0.002


def plan(names=NAMES, looks=(5, 8, 12), **more):
    more = {"repeats": 3, "halving": True, **more}
    return Plan("digits", names, 8, looks[-1], 100, 0, looks=looks, **more)


def outcome(plan, trial, shift, lost, task=DIGITS):
    """A run that ends as its seed and `shift` of its entry say; halved tunings keep two trials."""
    rng = np.random.default_rng([trial.seed, plan.entries.index(trial.entry)])
    value = 0.9 + shift.get(trial.entry, 0.0) + SD * rng.normal()
    if not task.maximize:
        value = 10 - value
    gone = "loss is nan" if trial.key in lost else None
    fresh = trial.phase == FRESH
    going = fresh or trial.index % plan.trials < 2
    steps = [25, 50, 75, 100] if going else [25]
    return Result(
        steps, [float(value)] * len(steps), [0.1] * len(steps), parameters=10, state_bytes=80,
        test=float(value) if fresh else None, diverged=gone, halted=not going, calls=steps[-1],
    )  # fmt: skip


def run(plan, shift=None, lost=(), task=DIGITS):
    """The runs of a whole race, made round by round; and the entries of each round."""
    pairs, fields = [], []
    while not (now := rounds.current(task, plan, pairs)).complete:
        tuned = [
            (t, outcome(plan, t, shift or {}, lost, task))
            for t in protocol.tuning(plan, now.entries, now.units)
        ]
        chosen = {e: [next(t for t, _ in tuned if t.entry == e)] * plan.seeds for e in now.entries}
        ran = protocol.fresh(plan, chosen, now.entries, now.units)
        pairs += tuned + [(t, outcome(plan, t, shift or {}, lost, task)) for t in ran]
        fields.append(now.entries)
    return pairs, fields


def raced(shift=None, lost=(), task=DIGITS, **more):
    made = plan(**more)
    return summarise(task, made, run(made, shift, lost, task)[0], PROVENANCE)


# --- which entries go on


def test_an_entry_that_is_decided_runs_no_more_and_the_baseline_runs_on():
    # far better at the first look; never told apart; alike, and so dropped
    made = plan(("adamw", "momentum", "adam"))
    pairs, fields = run(made, {"momentum": 0.05, "adam": 0.0})
    assert fields[0] == made.entries
    assert all("momentum" not in field and "adamw" in field for field in fields[1:])
    found = summarise(DIGITS, made, pairs, PROVENANCE)
    n = {name: len(entry["units"]) for name, entry in found["entries"].items()}
    assert n["momentum"] == 5
    assert n["adamw"] == max(n.values())
    assert found["entries"]["momentum"]["difference"]["look"] == 1


def test_a_baseline_alone_ends_at_the_first_look():
    made = plan(("adamw",))
    pairs, fields = run(made)
    assert fields == [("adamw",)]
    verdict = summarise(DIGITS, made, pairs, PROVENANCE)["verdict"]
    assert verdict.startswith("adamw was the only entry (n=15 fresh seeds): there is nothing to")


def test_a_race_of_a_fixed_number_of_seeds_is_one_round():
    made = Plan("digits", NAMES, 2, 6, 100, 0)
    now = rounds.current(DIGITS, made, [])
    assert (now.entries, now.units, now.complete) == (NAMES, range(6), False)
    _, fields = run(made)
    assert fields == [NAMES]


def test_a_look_is_not_changed_by_later_runs():
    """Worst metrics and blown-up runs are settled from the runs of the look alone."""
    task = replace(LOSS, worst=12.0, measured=12.0)
    made = plan()
    pairs, _ = run(made, {"momentum": 0.001}, [("fresh", "adam", 2)], task)
    first = [p for p in pairs if p[0].phase != FRESH or p[0].index < 5 * made.repeats]
    early = rounds.current(task, made, first)
    gone = {"test": 1e30, "validation": [1e30] * 4}
    terrible = [
        (t, replace(r, **gone) if t.index >= 15 and t.phase == FRESH else r) for t, r in pairs
    ]
    late = rounds.current(task, made, terrible)
    for name, at in early.standings.items():
        if at.state != "open":
            assert late.standings[name] == at


def test_a_unit_is_the_mean_of_its_fresh_runs():
    made = plan()
    pairs, _ = run(made)
    means, failed = rounds.unit_means(DIGITS, made, pairs, "adamw")
    tests = [r.test for t, r in pairs if (t.phase, t.entry) == (FRESH, "adamw")]
    assert means == pytest.approx(np.reshape(tests, (-1, 3)).mean(1))
    assert failed == set()
    _, failed = rounds.unit_means(DIGITS, made, run(made, lost=[(FRESH, "adamw", 4)])[0], "adamw")
    assert failed == {1}


def test_fresh_seeds_are_shared_by_entries_and_by_no_two_runs():
    made = plan()
    fresh = protocol.fresh(made, {e: [t] * 12 for e in NAMES for t in protocol.tuning(made)[:1]})
    by_entry = {e: [t.seed for t in fresh if t.entry == e] for e in NAMES}
    assert len({tuple(seeds) for seeds in by_entry.values()}) == 1
    assert len(set(by_entry["adamw"])) == 36


# --- one look


@given(
    d=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
    failed=st.sets(st.integers(0, 11), max_size=2),
    margin=st.one_of(st.none(), st.floats(0.01, 2)),
    rivals=st.sampled_from([1, 3, 8]),
)
@settings(deadline=None, max_examples=50)
def test_statements_follow_from_the_interval(d, failed, margin, rivals):
    for number in (1, 2, 3):
        at = at_look(d, number, rivals, failed=failed, margin=margin)
        mirrored = at_look([-x for x in d], number, rivals, failed=failed, margin=margin)
        assert (at.state == "told apart") == (mirrored.state == "told apart")
        if at.low is None:
            continue
        assert at.low <= at.mean <= at.high
        if not at.exact:
            assert (at.state == "told apart") == (at.low > 0 or at.high < 0)
        if at.state == "within margin":
            assert at.high < margin
        assert margin is None or at.state != "dropped"
        if number == 3:
            assert at.state != "open"


def test_one_failed_run_turns_to_the_exact_test():
    d = [0.01, 0.011, 0.012, 0.009, -5.0]
    by_t = at_look([0.01, 0.011, 0.012, 0.009, 0.01], 1, 1)
    assert by_t.state == "told apart"
    assert at_look(d, 1, 1, failed={4}).exact
    # one huge difference is one sign: the other eleven decide
    twelve = [*d, 0.01, 0.012, 0.008, 0.011, 0.009, 0.01, 0.0105]
    twelve[4] = 5.0
    at = standing(twelve, 8, failed={4})
    assert (at.state, at.units, at.exact) == ("told apart", 12, True)
    assert bounds(8)[1].p < 2.0 ** (1 - 8)  # eight units cannot do it


# --- what it says


def test_a_clear_winner():
    found = raced({"adam": 0.02})
    assert found["complete"]
    assert found["verdict"].startswith("Use adam: it is better than adamw in test accuracy by 2.")
    assert (
        "adam: 0 of n=5 units had a failed run (the true rate may be up to 45 %)"
        in found["verdict"]
    )


def test_several_winners_are_not_compared_with_each_other():
    found = raced({"adam": 0.02, "momentum": 0.03})
    assert found["verdict"].startswith("Use momentum or adam: each is better than adamw")
    assert "they are not compared with each other" in found["verdict"]


def test_nobody_is_better():
    found = raced()
    assert found["verdict"].startswith(
        "Keep adamw for now: no entry is shown to be better in test accuracy. adam, eadam or "
        "momentum may gain up to "
    )
    gains = [statements.gains(found, d)[1] for d in statements.statements(found).undecided.values()]
    assert f"may gain up to {100 * max(gains):.2f} points (98.3 % intervals)" in found["verdict"]


def test_all_are_worse():
    found = raced(dict.fromkeys(NAMES[1:], -0.05))
    assert found["verdict"].startswith("Keep adamw: every other entry is worse in test accuracy.")


@pytest.mark.parametrize("task", [DIGITS, LOSS])
def test_a_margin_has_its_own_statements(task):
    shift = {"momentum": 0.05, "adam": 0.0, "eadam": -0.05}
    names = ("adamw", "adam", "eadam")
    found = raced(shift, task=task, names=names, margin=0.03)
    assert found["verdict"].startswith("Keep adamw: no other entry gains ")
    assert "Better or worse than adamw by less than the margin of" in found["verdict"]
    assert "Worse than adamw: eadam" in found["verdict"]
    assert list(statements.statements(raced(shift, task=task, margin=0.03)).better) == ["momentum"]


def test_a_margin_that_is_too_small_is_undecided():
    found = raced(margin=1e-6)
    made = statements.statements(found)
    assert made.undecided
    who = ", ".join(made.undecided)
    assert found["verdict"].startswith(f"Keep adamw for now: {who} may gain 0.00 points")


def test_a_diverging_baseline_is_beaten_and_its_failures_are_told():
    lost = [(FRESH, "adamw", i) for i in (0, 7)]
    found = raced({"adam": 0.02, "momentum": 0.02, "eadam": 0.02}, lost)
    assert found["verdict"].startswith("Use ")
    assert "In 2 of n=12 units of adamw a run failed; each failed run counts as" in found["verdict"]
    assert found["entries"]["adam"]["difference"]["exact"]
    assert len(found["entries"]["adam"]["units"]) == 12
    assert any("the exact sign-flip test" in line for line in caveats(found))
    assert any("adamw: 2 of n=12 units had a failed run" in x for x in caveats(found))


def test_a_failing_baseline_is_not_to_be_kept():
    found = raced(lost=[(FRESH, "adamw", i) for i in (0, 7)])
    assert found["verdict"].startswith(
        "Undecided: no entry is shown to be better than adamw in test accuracy. In 2 of n=8 units "
        "of adamw a run failed; each failed run counts as accuracy 0.00 %, which"
    )
    assert found["use"] == []


def test_less_is_better_for_a_loss():
    found = raced({"adam": 0.02}, task=LOSS)
    assert "Use adam: it is better than adamw in test perplexity by 0.0" in found["verdict"]
    d = found["entries"]["adam"]["difference"]
    assert d["mean"] < 0
    assert d["low"] < d["high"] < 0


def test_the_table_shows_the_units_of_each_entry():
    found = raced({"adam": 0.05})
    assert "n (units)" in columns(found)
    assert {row[0]: row[1] for row in rows(found)}["adam"] == "15 (5)"


def test_full_runs_are_steps_by_steps_of_a_full_run():
    found = raced(dict.fromkeys(NAMES[1:], 0.05))
    assert found["full_runs"] == 4 * 5 * (6 * 0.25 + 2 + 3)


def test_what_would_decide_more_is_a_command():
    found = raced({"eadam": -0.05}, margin=1e-6)
    assert found["next"].startswith(
        "steepest race digits --optimizers adamw,momentum,adam --trials 8"
    )
    assert "--looks 20,32,48 --margin 0.0001 --steps 100 --seed 1" in found["next"]
    assert "next" not in raced(dict.fromkeys(NAMES[1:], -0.05))


@pytest.mark.parametrize("margin", [None, 0.01])
@pytest.mark.parametrize("shift", [0.0, 0.01, -0.01])
def test_an_entry_with_the_same_difference_on_every_unit(shift, margin):
    made = plan(("adamw", "adam"), margin=margin)
    pairs, _ = run(made)
    base = {t.index: r.test for t, r in pairs if (t.phase, t.entry) == (FRESH, "adamw")}
    pairs = [
        (t, replace(r, test=base[t.index] + shift) if t.entry == "adam" and t.phase == FRESH else r)
        for t, r in pairs
    ]
    now = rounds.current(DIGITS, made, pairs)
    found = summarise(DIGITS, made, pairs, PROVENANCE)
    if not shift:
        assert now.complete
        assert found["verdict"].startswith("Keep adamw: ")
        assert "The same as adamw on every unit: adam." in found["verdict"]
        assert {row[0]: row[3] for row in rows(found)}["adam"] == "+0.00 on every unit"
    elif now.complete:
        assert "1.00 points on every unit" in found["verdict"] or "not known" in found["verdict"]


def test_better_by_less_than_the_margin_is_no_reason_to_change():
    found = raced({"adam": 0.01, "momentum": -0.05, "eadam": -0.05}, margin=0.05)
    assert found["verdict"].startswith("Keep adamw: no other entry gains 5.00 points or more")
    assert "Better, but by less than the margin of 5.00 points: adam by " in found["verdict"]


def test_with_too_little_tuning_there_is_no_advice():
    made = replace(plan(), trials=3)
    found = summarise(DIGITS, made, run(made, {"adam": 0.05})[0], PROVENANCE)
    assert found["verdict"].startswith("Not enough tuning: 3 trials of an entry for each unit")
    assert "With so little tuning, adam is better than adamw in test accuracy" in found["verdict"]
    made = replace(plan(), trials=1)
    found = summarise(DIGITS, made, run(made)[0], PROVENANCE)
    assert "a unit is 3 fresh runs with the defaults" in found["verdict"]
    assert caveats(found)[0].startswith("Nothing was tuned: every entry, including adamw, ran with")


def test_what_was_judged_at_a_look_is_shown_whatever_comes_later():
    task = replace(LOSS, worst=12.0, measured=12.0)
    made = plan()
    pairs, _ = run(made, {"momentum": 0.05}, [(FRESH, "adamw", 3)], task)
    later = [(t, replace(r, test=40.0) if t.key == (FRESH, "adamw", 20) else r) for t, r in pairs]
    now = rounds.current(task, made, pairs)
    found = summarise(task, made, later, PROVENANCE, now=now)["entries"]
    for name in NAMES[1:]:
        d = found[name]["difference"]
        assert d["mean"] == pytest.approx(np.mean(d["pairs"]))
        assert len(d["pairs"]) == d["n"]


def test_failures_are_counted_by_unit():
    found = raced(lost=[(FRESH, "adamw", 0), (FRESH, "adamw", 1), (FRESH, "adamw", 7)])
    n = len(found["entries"]["adamw"]["units"])
    assert found["entries"]["adamw"]["failed_units"] == 2
    assert any(f"adamw: 2 of n={n} units had a failed run" in x for x in caveats(found))


@pytest.mark.parametrize("looks", [(3, 100), (5, 200), (5, 8, 500)])
def test_a_look_that_may_spend_nothing_allows_no_claim(looks):
    first = bounds(8, looks)[0]
    assert first.t == np.inf
    at = at_look([1.0, 1.1, 0.9, 1.05, 0.95], 1, 8, looks)
    assert (at.state, at.low, at.high) == ("open", None, None)
    assert at_look([1.0, 1.1, 0.9, 1.05, 0.95], 1, 8, looks, failed={0}).state == "open"


@pytest.mark.parametrize(
    ("reports", "repeated", "cost"),
    [((), False, 4), ((50, 100), False, 5), ((100,), False, 8), ((), True, 6), ((100,), True, 14)],
)
def test_the_cost_of_a_tuning_depends_on_how_often_a_run_reports(reports, repeated, cost):
    assert plan().tuning_cost(reports, repeated=repeated) == cost


def test_resuming_says_the_margin_as_it_was_given():
    made = replace(plan(margin=0.005), request={"margin": 0.5})
    store = SimpleNamespace(plan=made, task=DIGITS)
    with pytest.raises(BadCall, match=r"--margin 0\.7: .* was started with 0\.5;"):
        request._check_options(Request("digits", margin=0.7), store, "--resume", "x")
    with pytest.raises(BadCall, match=r"--seeds 12: .* was started without --seeds;"):
        request._check_options(Request("digits", seeds=12), store, "--resume", "x")
    request._check_options(Request("digits", margin=0.5, looks="5, 8,12"), store, "--resume", "x")


# --- the request


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"looks": "5,8", "seeds": 10}, "--looks 5,8 with --seeds: --seeds asks for"),
        ({"looks": "5,8", "fixed": True}, "--looks 5,8 with --fixed"),
        ({"margin": 0.5, "budget": "60s"}, "--margin 0.5 with --budget"),
        ({"looks": "8,5"}, "--looks '8,5': expected the number of units .*at least 2 more"),
        ({"looks": "5,x"}, r"--looks '5,x': expected the number of units at each look"),
        ({"looks": ""}, "--looks '': expected"),
        ({"looks": "5,999999"}, "at most 100,000 units"),
        ({"margin": 0.0}, "--margin 0: expected a number above 0"),
        ({"margin": -1.0}, "--margin -1"),
        ({"margin": float("nan")}, "--margin nan"),
        ({"margin": float("inf")}, "--margin inf"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be(given, words):
    with pytest.raises(BadCall, match=words):
        Request("digits", "adamw,adam", **given).check()


def test_the_default_is_a_race_in_looks_and_seeds_or_a_budget_ask_for_a_fixed_one():
    made = planning.make_plan(Request("digits"), 1, None, 0.0)
    assert (made.looks, made.repeats, made.halving) == ((5, 8, 12), 3, True)
    for options in ({"seeds": 10}, {"fixed": True}):
        made = planning.make_plan(Request("digits", **options), 1, None, 0.0)
        assert (made.looks, made.repeats, made.halving, made.seeds) == ((), 1, False, 10)


def test_a_margin_of_a_share_is_given_in_points():
    assert Request("digits", margin=0.5).smallest_gain() == pytest.approx(0.005)
    assert Request("diabetes", margin=0.5).smallest_gain() == 0.5


def test_the_command_that_reproduces_a_race_makes_the_same_plan():
    made = plan(margin=0.005)
    found = summarise(DIGITS, made, run(made)[0], PROVENANCE)
    words = found["reproduce"].split()
    given = dict(zip(words[3::2], words[4::2], strict=True))
    asked = Request(
        "digits", given["--optimizers"], int(given["--trials"]), None, int(given["--steps"]),
        seed=int(given["--seed"]), looks=given["--looks"], margin=float(given["--margin"]),
    )  # fmt: skip
    assert replace(planning.make_plan(asked, 1, None, 0.0), request={}) == made


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 5, 8, 16, 33])
def test_the_cost_of_a_unit_is_counted(trials):
    made = replace(plan(), trials=trials)
    alive, cost, before = trials, 3.0, 0
    for at, left in made.rungs:
        cost, alive, before = cost + alive * (at - before) / 100, left, at
    assert made.unit_cost == pytest.approx(cost + alive * (100 - before) / 100)
    assert made.rungs == () if trials < 4 else made.rungs[-1][1] >= 1
    if trials == 8:
        assert made.unit_cost == 7.0


def test_what_a_plan_says():
    text = planning.describe(plan(), 2, 1.0, 0.0, [0.01, -0.02, 0.015, 0.005], proportion=True)
    assert "4 entries, looks after 5, 8 and 12 units." in text
    assert "as many steps as 7 full runs" in text
    assert "At most 336 full runs, about 3 min with --jobs 2. About " in text
    assert "can tell an entry apart at 12 units, not earlier" in text
    two = planning.describe(plan(looks=(5, 8), names=("adamw", *"abcdefgh")), 2, 1.0, 0.0)
    assert "at none of these looks" in two
