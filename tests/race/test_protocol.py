"""Who is tuned how, on which seeds, and what a budget buys: laws of pure functions."""

import math
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import tasks
from steepest.errors import BadCall
from steepest.race import budgets, driver, planning, protocol, scores
from steepest.race.leases import Unshared
from steepest.race.protocol import FRESH, TUNING, Plan, Result, Trial
from steepest.race.rounds import Round
from steepest.training.recipe import Recipe

DIGITS = tasks.get("digits")
SPACE = {"lr": (1e-5, 1e-1), "eps": (1e-9, 1e-3)}
PLAN = Plan("digits", ("adamw", "momentum", "adam"), trials=4, seeds=3, steps=7, seed=5)


def turns(plan, entry):
    """(fresh seed, trial) -> its trial, of one entry."""
    mine = [trial for trial in protocol.tuning(plan) if trial.entry == entry]
    return {divmod(trial.index, plan.trials): trial for trial in mine}


# --- points


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_a_point_depends_on_seed_and_index_alone(seed, few, many):
    few, many = sorted((few, many))
    points = protocol.points(seed, SPACE, many)
    assert points[:few] == protocol.points(seed, SPACE, few)
    assert points != protocol.points(seed + 1, SPACE, many)
    # an entry with fewer knobs tries the same learning rates
    assert [p["lr"] for p in points] == [
        p["lr"] for p in protocol.points(seed, {"lr": SPACE["lr"]}, many)
    ]


def test_points_are_log_uniform_in_their_range():
    points = protocol.points(3, SPACE, 64)
    for knob, (low, high) in SPACE.items():
        logs = [math.log(point[knob] / low) / math.log(high / low) for point in points]
        # a scrambled Sobol net has exactly one of 64 points in each 64th
        assert sorted(math.floor(64 * u) for u in logs) == list(range(64))


def test_the_points_of_every_tuning_lie_spread_over_the_range_that_the_rule_declares():
    plan = replace(PLAN, trials=9)
    for entry in plan.entries:
        for i in range(plan.seeds):
            tried = [trial.hyper for (j, k), trial in turns(plan, entry).items() if j == i and k]
            for knob, (low, high) in Recipe.read(entry).space.items():
                logs = [math.log(hyper[knob] / low) / math.log(high / low) for hyper in tried]
                assert sorted(math.floor(8 * u) for u in logs) == list(range(8))


# --- tuning


def test_every_entry_is_tuned_anew_for_every_fresh_seed():
    tuned = protocol.tuning(PLAN)
    assert len(tuned) == 3 * PLAN.tunings == 3 * 3 * 4
    assert PLAN.runs == 3 * (3 * 4 + 3)
    for entry in PLAN.entries:
        found = turns(PLAN, entry)
        assert sorted(found) == [(i, k) for i in range(3) for k in range(4)]
        assert [found[i, 0].hyper for i in range(3)] == [Recipe.read(entry).defaults] * 3
        points = [tuple(trial.hyper.values()) for (_, k), trial in found.items() if k]
        assert len(set(points)) == 3 * 3  # no point of one seed is tried for another
        assert not set(points) & {tuple(Recipe.read(entry).defaults.values())}


def test_no_seed_is_used_twice_and_all_are_shared_by_the_entries():
    tuned = protocol.tuning(PLAN)
    chosen = {e: [turns(PLAN, e)[i, 1] for i in range(3)] for e in PLAN.entries}
    final = protocol.fresh(PLAN, chosen)
    pilots = planning._pilot_trials(PLAN, ["adamw"], 8)
    assert len({t.seed for t in (*tuned, *final, *pilots)}) == 3 * 4 + 3 + 8
    for runs in (tuned, final):
        seeds = {e: [t.seed for t in runs if t.entry == e] for e in PLAN.entries}
        assert len(set(map(tuple, seeds.values()))) == 1
        # one entry after the other, so that none has the machine when it is slow
        assert [t.entry for t in runs] == [*PLAN.entries] * (len(runs) // 3)
    assert {t.steps for t in (*tuned, *final)} == {7}


plans = st.tuples(st.integers(1, 9), st.integers(1, 6))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**31), plans, plans, st.integers(1, 99),
    st.sets(st.sampled_from(["adamw", "momentum", "eadam", "adabound"])),
    st.sampled_from(["adam", "adabelief", "torch.optim:SGD+cosine"]),
)  # fmt: skip
def test_point_and_seed_of_a_trial_depend_on_nothing_else(seed, one, other, steps, field, entry):
    alone = Plan("digits", (entry,), *one, steps=5, seed=seed)
    among = Plan("diabetes", (*field, entry), *other, steps=steps, seed=seed)
    first, second = turns(alone, entry), turns(among, entry)
    for key in first.keys() & second.keys():
        assert (first[key].seed, first[key].hyper) == (second[key].seed, second[key].hyper)
    elsewhere = turns(replace(alone, seed=seed + 1), entry)
    for (i, k), trial in first.items():
        assert trial.seed != elsewhere[i, k].seed
        assert (trial.hyper != elsewhere[i, k].hyper) == (k > 0)
    assert [t.seed for t in protocol.fresh(alone, {entry: [*first.values()]})] == [
        t.seed for t in protocol.fresh(replace(alone, steps=steps), {entry: [*first.values()]})
    ]


def test_entries_with_the_same_range_try_the_same_points():
    same = replace(PLAN, entries=("adam", "adam+cosine", "momentum"))
    one, other, third = (
        [(t.seed, t.hyper) for t in turns(same, entry).values()] for entry in same.entries
    )
    assert one == other != third


# --- the choice


def pair(index, values, diverged=None):
    trial = Trial("digits", TUNING, "adam", index, 0, 9, {"lr": 1.0})
    return trial, Result(steps=[1, 2], validation=values, seconds=[0, 0], diverged=diverged)


def test_best_is_chosen_by_the_last_validation_metric():
    pairs = [pair(0, [0.99, 0.90]), pair(1, [0.1, 0.95]), pair(2, [0.5, 0.95])]
    assert scores.best(DIGITS, pairs).index == 1
    assert scores.best(DIGITS, pairs[::-1]).index == 1
    assert scores.best(replace(DIGITS, maximize=False, worst=9.0), pairs).index == 0
    lost = [pair(0, [1.0], "nan"), pair(1, [0.0, 0.0])]
    assert scores.best(DIGITS, lost).index == 1
    assert scores.best(DIGITS, lost[:1]).index == 0


def test_trials_are_kept_with_their_fresh_seed():
    every = [pair(i, [0.5]) for i in range(12)]
    found = protocol.by_seed(PLAN, every)
    assert [[t.index for t, _ in mine] for mine in found] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
    ]  # fmt: skip
    unfinished = protocol.by_seed(PLAN, [every[5], every[4], every[0]])
    assert [[t.index for t, _ in mine] for mine in unfinished] == [[0], [5, 4], []]


@given(st.lists(st.integers(0, 5), min_size=12, max_size=12), st.integers(0, 11))
def test_the_choice_for_a_seed_looks_at_its_own_trials_alone(values, better):
    def chosen(values):
        pairs = [pair(i, [score / 10]) for i, score in enumerate(values)]
        return [scores.best(DIGITS, mine).index for mine in protocol.by_seed(PLAN, pairs)]

    before = chosen(values)
    for i, index in enumerate(before):
        mine = values[4 * i : 4 * i + 4]
        assert index == 4 * i + mine.index(max(mine))
    after = chosen([*values[:better], 9, *values[better + 1 :]])
    before[better // 4] = better  # the best of all, and nothing else has changed
    assert after == before


def test_a_fresh_run_has_what_was_chosen_for_its_seed():
    chosen = {e: [turns(PLAN, e)[i, i + 1] for i in range(3)] for e in PLAN.entries}
    final = protocol.fresh(PLAN, chosen)
    for entry in PLAN.entries:
        mine = [t for t in final if t.entry == entry]
        assert [t.index for t in mine] == [0, 1, 2]
        assert [t.hyper for t in mine] == [t.hyper for t in chosen[entry]]


# --- budgets


@given(
    st.floats(1, 3600), st.integers(1, 12), st.integers(1, 16), st.floats(0.01, 60),
    st.floats(0, 2), st.none() | st.integers(1, 20),
)  # fmt: skip
def test_a_plan_fits_its_budget_or_is_the_least(seconds, field, jobs, run, warm, given_seeds):
    count, seeds = budgets.affordable(seconds, field, jobs, run, warm, given_seeds)
    assert count >= 1
    assert seeds == given_seeds if given_seeds else 5 <= seeds <= 10
    least = count == 1 and (given_seeds or seeds == 5)
    assert least or field * (seeds * (count + 1) * run / jobs + warm) <= seconds


@pytest.mark.parametrize("given_seeds", [None, 1, 3, 12])
def test_a_budget_gives_up_trials_then_seeds_then_trials(given_seeds):
    wanted = [(trials, 10) for trials in range(40, 4, -1)]  # 10 seeds with 5 trials or more,
    wanted += [(5, seeds) for seeds in range(9, 5, -1)]  # fewer seeds,
    wanted += [(6, 5), (5, 5)]
    wanted += [(trials, 5) for trials in (4, 3, 2, 1)]  # fewer trials
    if given_seeds:
        wanted = [(trials, given_seeds) for trials in range(600, 0, -1)]
    found = []
    for runs in range(-3, 400):  # of one entry on one worker, a second each
        first = next((w for w in wanted if w[1] * (w[0] + 1) <= runs), wanted[-1])
        plan = budgets.affordable((runs + 0.001) / 0.85, 1, 1, 1.0, 0.0, given_seeds)
        assert plan == first, runs
        found.append(plan)
    assert len(set(found)) > 20


def test_a_budget_by_hand():
    # 85 s less 5 s of first steps, on 2 workers of 0.5 s a run: 320 runs, 32 for each of 10
    assert budgets.affordable(100, 10, 2, 0.5, 0.5, None) == (5, 5)  # 30 of them
    assert budgets.affordable(100, 10, 2, 0.5, 0.5, 2) == (15, 2)
    assert budgets.affordable(100, 5, 2, 0.5, 0.5, None) == (5, 10)  # 82.5 s: 66 for each of 5
    assert budgets.affordable(100, 10, 2, 1.0, 0.5, None) == (2, 5)
    assert budgets.affordable(1, 10, 2, 2.0, 0.5, None) == (1, 5)


@given(st.integers(1, 12), st.integers(1, 16), st.floats(0.01, 60), st.floats(0, 2),
       st.none() | st.integers(1, 20))  # fmt: skip
def test_what_would_be_enough_is(field, jobs, run, warm, given_seeds):
    need = budgets.enough(field, jobs, run, warm, given_seeds)
    trials, seeds = budgets.affordable(need, field, jobs, run, warm, given_seeds)
    assert trials >= 5
    assert seeds >= 5 or given_seeds
    assert budgets.affordable(0.8 * need, field, jobs, run, warm, given_seeds)[0] <= trials


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("60", 60), ("1.5m", 90), ("2h", 7200), ("0.5s", 0.5)]
)
def test_budgets(text, seconds):
    assert budgets.parse_budget(text) == seconds


def test_a_budget_of_too_many_runs_is_refused_before_they_are_listed():
    most = replace(PLAN, trials=999, seeds=33)  # 3 x 33 x 1000
    assert planning._check_size(most) is most
    with pytest.raises(BadCall, match=r"102,000 runs: expected at most 100,000; lower --budget"):
        planning._check_size(replace(most, seeds=34))


def test_what_is_left_is_looked_for_in_time_that_grows_with_it(monkeypatch):
    looked, key = [], Trial.key.fget
    monkeypatch.setattr(Trial, "key", property(lambda trial: looked.append(1) or key(trial)))
    planned = protocol.tuning(replace(PLAN, entries=("adamw",), trials=100))
    nothing = dict.fromkeys(("advance", "note", "ended"), lambda *_: None)
    stored, shown = [], SimpleNamespace(**nothing)
    store = SimpleNamespace(
        task=DIGITS, plan=PLAN, results=list, add=lambda *pair: stored.append(pair),
        leases=lambda: nullcontext(Unshared()),
    )  # fmt: skip
    monkeypatch.setattr(driver, "Progress", lambda *_, **__: nullcontext(shown))
    pool = SimpleNamespace(
        map=lambda items, on_note: ((t, Result([1], [0.5], [0.0])) for t in items)
    )
    driver._run(pool, store, planned, Round(PLAN.entries, range(PLAN.seeds)))
    assert [trial for trial, _ in stored] == planned
    assert len(looked) < 20 * len(planned)


def pilots(cold, warm):
    """A pool of two workers whose first run takes `cold` seconds more, its first step too."""
    started = []

    def run(trial):
        first = len(started) < 2
        started.append(trial)
        return trial, Result(
            [1], [0.5], [0.1], wall_seconds=0.5 + cold * first,
            warm_seconds=warm + cold * first,
        )  # fmt: skip

    return SimpleNamespace(map=lambda items: map(run, items))


def test_what_a_worker_imports_with_its_first_run_is_no_runs_time():
    run, warm, found = planning._time_pilots(PLAN, 2, 2, pilots(30.0, 0.125))
    assert (run, warm) == (0.5, 0.125)
    assert [t.index for t, _ in found] == [0, 1, 2, 3]
    assert len(planning._time_pilots(PLAN, 2, 8, pilots(30.0, 0.1))[2]) == 10
    alone = replace(PLAN, entries=("adamw",))
    assert planning._time_pilots(alone, 2, 2, pilots(30.0, 0.1))[:2] == (0.5, 0.0)


def test_a_budget_that_buys_no_verdict_says_so_before_the_race(capsys):
    def planned(budget, cold=0.0):
        request = driver.Request("digits", "adamw,adam,sgd", budget=budget)
        return planning.make_plan(request, 2, pilots(cold, 0.0), perf_counter())

    plan = planned("18s")
    assert plan.trials < 5
    assert plan.enough
    said = capsys.readouterr().err
    assert f"Not enough tuning: {plan.trials} trials of an entry for each fresh seed" in said
    assert "give --budget 30s or more, or fewer --optimizers" in said
    enough = planned("30s")
    assert (enough.trials, enough.seeds, enough.enough) == (5, 5, None)
    assert capsys.readouterr().err == ""
    # imports cost the budget what they cost, and no run anything
    assert planned("30s", cold=100.0) == enough


@pytest.mark.parametrize(
    "text", ["", "s", "-5s", "0", "nan", "inf", "5 days", "1e999", "1e300h", "9000h"]
)
def test_bad_budgets(text):
    with pytest.raises(BadCall, match="expected a wall time"):
        budgets.parse_budget(text)


@pytest.mark.parametrize("name", ["digits", "bag-of-words"])
def test_a_bundled_run_that_names_one_class_has_failed(name):
    from steepest.tasks import images, sparse

    task = tasks.get(name)
    splits = images.digits() if name == "digits" else sparse.documentation().splits
    shares = [
        max((splits[s][1] == k).double().mean().item() for k in splits[s][1].unique())
        for s in ("validation", "test")
    ]
    assert task.worst == pytest.approx(max(shares))
    trial = Trial(name, FRESH, "adamw", 0, 0, 2, {"lr": 0.1})
    for share in shares:
        assert scores.failed(task, trial, Result([2], [share], [0.1], share))
    assert not scores.failed(task, trial, Result([2], [0.5], [0.1], 0.5))


def test_a_baseline_is_named_as_entries_are():
    from steepest.race.request import Request

    assert Request("digits", "adamw,sgd", baseline="sgd ").baseline_name() == "sgd"
    assert Request("digits", "adamw,sgd", baseline="sgd ").entry_names() == ("adamw", "sgd")
    for bad in ("", " ", "nonsense", "adamw,sgd"):
        with pytest.raises(BadCall):
            Request("digits", "adamw,sgd", baseline=bad).check()


def test_a_worst_whose_square_is_infinite_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        'MINIMIZE = "loss"\nWORST = 1e308\n\n\ndef train(make_optimizer, report, seed):\n    pass\n'
    )
    with pytest.raises(
        BadCall, match="WORST = 1e\\+308: expected a number between -1e100 and 1e100"
    ):
        tasks.get(str(file))


def test_a_plan_is_not_silently_compared_to_another_baseline(monkeypatch):
    assert PLAN.baseline == PLAN.compared_to(None).baseline == "adamw"
    assert PLAN.compared_to("adam").baseline == "adam"
    with pytest.raises(BadCall, match="--baseline lion is not an entry of the race: expected one"):
        PLAN.compared_to("lion")
    # nor is one that is made of a request
    request = driver.Request("digits", "adamw,adam", baseline="adam")
    assert planning.make_plan(request, 1, None, 0.0).baseline == "adam"
    monkeypatch.setattr(driver.Request, "entry_names", lambda self: ("adamw", "momentum"))
    with pytest.raises(BadCall, match="--baseline adam is not an entry of the race"):
        planning.make_plan(request, 1, None, 0.0)
    # who leaves entries out of a plan keeps a baseline that takes part
    assert replace(PLAN, entries=("momentum", "adam")).baseline == "momentum"
    assert replace(PLAN, entries=("adam", "adamw")).baseline == "adamw"
