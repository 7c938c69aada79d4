"""What lint finds in a race, and what is said of it: each finding on, and just off."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

import steepest
from steepest.race import protocol
from steepest.race.lint import RULES, lint, untuned_because
from steepest.race.notes import beside, care, caveats
from steepest.race.verdicts import verdict
from steepest.statistics.inference import compare

LR = {"lr": [1e-5, 1e-1]}


def tried(*pairs, knob="lr"):
    """Tuning trials of (value of the knob, validation); None is divergence."""
    return [
        {
            "hyperparameters": {knob: value},
            "validation": 0.0 if score is None else score,
            "diverged": "nan" if score is None else None,
        }
        for value, score in pairs
    ]


def entry(*turns, test, space=LR, validation=None, lost=0):
    """An entry of 6 fresh seeds, each with a tuning of its own; one alone is that of every seed."""
    turns = turns * len(TEST) if len(turns) == 1 else turns
    assert len(turns) == len(TEST)
    tuning, chosen = [], []
    for turn in turns:
        scores = [-1 if trial["diverged"] else trial["validation"] for trial in turn]
        chosen.append(len(tuning) + scores.index(max(scores)))
        tuning += copy.deepcopy(turn)
    hypers = [tuning[i]["hyperparameters"] for i in chosen]
    ordered = {knob: sorted(hyper[knob] for hyper in hypers) for knob in hypers[0]}
    return {
        "space": space,
        "untuned": untuned_because(tuning),
        "hyperparameters": {knob: [v[0], v[2], v[-1]] for knob, v in ordered.items()},
        "chosen": chosen,
        "trials": len(tuning),
        "tuning": tuning,
        "validation": validation or test,
        "test": test,
        "diverged": {"tuning": 0, "fresh": lost},
        "failed": lost,
        "difference": None,
    }


GOOD = tried((1e-3, 0.95), (3e-3, 0.96), (1e-2, 0.94), (1e-4, 0.9), (5e-2, 0.5))
TEST = [0.950, 0.955, 0.960, 0.958, 0.952, 0.949]
LOSS = [v - 0.02 + x for v, x in zip(TEST, (0, 1e-3, 2e-3, 0, 1e-3, 0), strict=True)]
STEADY = [v + x for v, x in zip(TEST, (1e-4, 0, -1e-4, 1e-4, 0, 2e-4), strict=True)]


def race(maximize=True, steps=2000, trials=5, **entries):
    entries = {"adamw": entry(GOOD[:trials], test=TEST), **entries}
    assert {e["trials"] for e in entries.values()} == {trials * len(TEST)}
    for name, d in compare(
        {
            name: [a - b for a, b in zip(e["test"], TEST, strict=True)]
            for name, e in entries.items()
            if name != "adamw"
        },
        maximize=maximize,
        failed=[name for name, e in entries.items() if e["failed"]],
    ).items():
        entries[name]["difference"] = vars(d)
    return {
        "complete": True,
        "metric": "accuracy",
        "maximize": maximize,
        "proportion": True,
        "worst": 0.0,
        "baseline": "adamw",
        "runs": {"finished": 1, "planned": 1},
        "plan": {
            "trials": trials,
            "seeds": len(TEST),
            "steps": steps,
            "seed": 0,
            "over_budget": False,
            "request": {},
        },
        "test_size": 597,
        "entries": entries,
    }


def findings(summary, name):
    return {f["entry"]: f["text"] for f in lint(summary) if f["name"] == name}


def test_a_good_race_has_no_finding():
    assert lint(race(adam=entry(GOOD, test=STEADY))) == []


def test_an_interrupted_race_is_not_judged():
    assert lint({**race(), "complete": False, "entries": {}}) == []


def test_every_finding_is_one_sentence_with_a_number_and_a_cure():
    bad = entry(tried((1e-3, 0.9), (0.09, None), (0.01, None)), test=[0.1] * 6, lost=3)
    edge = entry(tried((1e-3, 0.9), (1e-2, 0.93), (0.09, 0.96)), test=[0.90] * 5 + [0.91])
    good = entry(GOOD[:3], test=STEADY)
    found = lint(race(steps=300, trials=3, adabound=bad, adam=edge, momentum=good))
    assert {f["name"] for f in found} >= {"untuned", "diverged", "border", "schedule", "inclusion"}
    assert {f["name"] for f in found} <= set(RULES)
    for f in found:
        assert set(f) == {"name", "entry", "text"}
        assert f["entry"] in f["text"]
        assert any(c.isdigit() for c in f["text"])
        assert f["text"].count(";") == 1
        assert "\n" not in f["text"]
        assert f["text"][-1] != "."
        # an entry's name stays as it is written, a word begins a sentence
        assert f["text"].startswith(f["entry"]) or f["text"][0].isupper()


# --- untuned


def test_untuned():
    bare = [{**t, "hyperparameters": {}} for t in GOOD[:3]]
    none = entry(bare, test=TEST, space={})
    lost = entry(tried((1e-3, 0.95), (0.1, None), (0.05, None)), test=TEST)
    found = findings(race(trials=3, b=none, c=lost), "untuned")
    assert set(found) == {"b", "c"}
    assert "0 knobs" in found["b"]
    assert "all of its 12 trials except the defaults diverged" in found["c"]
    one = findings(race(trials=1, a=entry(GOOD[:1], test=TEST)), "untuned")
    assert set(one) == {"adamw", "a"}
    assert "1 configuration" in one["a"]


def test_one_tuning_that_trains_is_enough():
    lost, trains = (tried((1e-3, 0.95), (0.1, None), (0.05, last)) for last in (None, 0.1))
    some = entry(*[lost] * 5, trains, test=TEST)
    assert findings(race(trials=3, a=some), "untuned") == {}


def test_one_trial_that_trains_is_tuning():
    assert untuned_because(tried((1e-3, 0.95), (0.1, None), (0.05, 0.1))) is None
    # the defaults may diverge: then something else was chosen
    assert untuned_because(tried((1e-3, None), (1e-4, 0.5))) is None


# --- the border


EDGE = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.93), (0.08, 0.99))
INSIDE = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.99), (0.08, 0.93))


@pytest.mark.parametrize(
    ("best", "side"), [(0.02, "highest"), (0.2, "highest"), (5e-5, "lowest"), (1e-6, "lowest")]
)
def test_the_best_at_the_border(best, side):
    tuning = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.93), (best, 0.99))
    found = findings(race(trials=4, adam=entry(tuning, test=STEADY)), "border")
    wider = "1e-05:10" if side == "highest" else "1e-07:0.1"
    assert found == {
        "adam": f"The best lr of adam was the {side} value in 6 of 6 tunings, but "
        f"chance would give 1.5; give --search adam.lr={wider} "
        f"(the range was 1e-05 to 0.1), or more --trials if the range was wide enough"
    }


@pytest.mark.parametrize("count", range(7))
def test_the_border_is_said_where_chance_alone_would_not_end_there(count):
    turns = [INSIDE] * (6 - count) + [EDGE] * count
    found = findings(race(trials=4, adam=entry(*turns, test=STEADY)), "border")
    # two entries, two ends each; the binomial summed by hand
    chance = sum(math.comb(6, k) * 0.25**k * 0.75 ** (6 - k) for k in range(count, 7))
    assert set(found) == ({"adam"} if chance < 0.05 / 4 else set())
    assert not found or f"in {count} of 6 tunings," in found["adam"]
    assert bool(found) == (count > 4)


@pytest.mark.parametrize("trials", [4, 5, 6, 8])
def test_a_class_whose_rates_are_all_too_low_is_seen_with_few_trials(trials):
    """Points as a race draws them, a metric that rises with lr: the border is said every time."""
    space = {"lr": (1e-3 / 30, 3e-2)}
    rng, spoken, false = np.random.default_rng(trials), 0, 0
    for i in range(100):
        turns = [[] for _ in TEST]
        noise = [[] for _ in TEST]
        for j in range(len(TEST)):
            rates = [1e-3, *(x["lr"] for x in protocol.points(97 * i + j, space, trials - 1))]
            turns[j] = tried(*((lr, lr) for lr in rates))
            noise[j] = tried(*((lr, rng.random()) for lr in rates))
        bad, good = (entry(*t, test=STEADY, space=space) for t in (turns, noise))
        found = {f["entry"] for f in lint(race_of(trials, bad, good)) if f["name"] == "border"}
        spoken, false = spoken + ("bad" in found), false + ("good" in found)
    assert spoken == 100
    # at most 5 % of races for all ends together: 10 of 100 is the 97.5 % bound
    assert false <= 10


def race_of(trials, bad, good):
    known = race(adamw=entry(GOOD[:3], test=TEST), trials=3)
    known["plan"]["trials"] = trials
    known["entries"] = {"bad": bad, "good": good}
    known["baseline"] = "good"
    return known


def test_each_side_of_the_range_counts_alone():
    low = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.93), (2e-5, 0.99))
    split = entry(*[EDGE, low] * 3, test=STEADY)
    assert findings(race(trials=4, adam=split), "border") == {}
    found = findings(race(trials=4, adam=entry(*[low] * 5, EDGE, test=STEADY)), "border")
    assert "was the lowest value in 5 of 6" in found["adam"]


def test_a_tuning_in_which_all_diverged_counts_for_nothing():
    # its last rate is the same in all trials: only divergence keeps it from the border
    lost = tried((0.08, None), (0.08, None), (0.08, None), (0.08, None))
    four = race(trials=4, adam=entry(*[EDGE] * 4, *[lost] * 2, test=STEADY))
    assert findings(four, "border") == {}
    five = race(trials=4, adam=entry(lost, *[EDGE] * 5, test=STEADY))
    assert "in 5 of 6 tunings," in findings(five, "border")["adam"]


def test_another_tuning_does_not_move_the_border():
    # 0.05 is the last one that these tried, and they alone
    near = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.93), (0.05, 0.99))
    mixed = entry(*[near] * 5, INSIDE, test=STEADY)
    assert "in 5 of 6 tunings," in findings(race(trials=4, adam=mixed), "border")["adam"]


@pytest.mark.parametrize(
    "tuning",
    [
        tried((1e-3, 0.9), (0.08, 0.99), (0.09, 0.9)),  # something beyond it was worse
        tried((1e-3, 0.9), (0.08, 0.99), (0.09, None)),  # or diverged
        tried((1e-4, 0.9), (0.09, 0.99), (1e-3, 0.99)),  # as good in the middle
        tried((1e-3, 0.9), (0.09, 0.99)),  # of two, one is always last
        tried((1e-3, None), (1e-4, None), (0.09, None)),
    ],
)
def test_no_border(tuning):
    summary = race(trials=len(tuning), adam=entry(tuning, test=STEADY))
    assert findings(summary, "border") == {}


def test_the_border_of_every_knob():
    space = {**LR, "final_lr": [1e-3, 10.0]}
    tuning = copy.deepcopy(GOOD)
    for trial, value in zip(tuning, (0.1, 9.0, 1.0, 0.01, 2.0), strict=True):
        trial["hyperparameters"]["final_lr"] = value
    found = findings(race(adabound=entry(tuning, test=STEADY, space=space)), "border")
    assert "The best final_lr of adabound was the highest value in 6 of 6" in found["adabound"]


# --- few trials


def test_too_few_trials_for_the_knobs():
    two = {**LR, "final_lr": [1e-3, 10.0]}
    tuning = [
        {**t, "hyperparameters": {**t["hyperparameters"], "final_lr": 0.1 + i}}
        for i, t in enumerate(GOOD)
    ]
    found = findings(race(adabound=entry(tuning, test=STEADY, space=two)), "few-trials")
    assert found == {
        "adabound": "adabound has 2 knobs, but only 4 trials besides its defaults; "
        "give --trials 9 or more"
    }
    four = race(trials=4, a=entry(GOOD[:4], test=TEST))
    assert "a has 1 knob, but only 3 trials besides" in findings(four, "few-trials")["a"]
    two = race(trials=2, a=entry(GOOD[:2], test=TEST))
    assert "a has 1 knob, but only 1 trial besides" in findings(two, "few-trials")["a"]


# --- divergence


def test_a_diverged_best():
    lost = tried((1e-3, None), (1e-2, None), (1e-4, None), (1e-5, None), (0.1, None))
    some = entry(*[lost] * 2, *[GOOD] * 4, test=[0.0] * 6, lost=6)
    found = findings(race(a=some, b=entry(GOOD, test=STEADY, lost=2)), "diverged")
    assert "All tuning trials of a diverged for 2 of 6 fresh seeds;" in found["a"]
    assert "configuration of b diverged on 2 of 6 fresh seeds, so" in found["b"]


# --- worse than its default

BEFORE = [0.95, 0.951, 0.949, 0.95, 0.952, 0.948]
"""What the defaults reached in six tunings: close together, as the fresh runs below are not."""
FRESH = [0.90, 0.97, 0.85, 0.89, 0.99, 0.80]


def lucky(before):
    """A baseline whose defaults reached `before`, and of which a better trial was chosen."""
    others = ((0.04, 0.999), (1e-4, 0.3), (1e-5, 0.2), (1e-2, 0.9))
    return [tried((1e-3, score), *others) for score in before]


def test_a_baseline_tuned_worse_than_its_defaults():
    fresh = [0.90, 0.91, 0.90, 0.89, 0.92, 0.90]
    tuned = entry(*lucky(BEFORE), test=TEST, validation=fresh)
    found = findings(race(adamw=tuned), "worse-than-default")
    said = "reached 90.33 in validation on 6 fresh seeds, but its defaults reached 95.00"
    assert said in found["adamw"]
    higher = [0.97 + x / 10 for x in fresh]
    tuned = entry(*lucky(BEFORE), test=TEST, validation=higher)
    assert not findings(race(adamw=tuned), "worse-than-default")
    assert findings(race(maximize=False, adamw=tuned), "worse-than-default")


def test_worse_than_its_defaults_is_welchs_test():
    decided = []
    for shift in np.linspace(-0.1, 0.1, 101):
        fresh = [v + shift for v in FRESH]
        tuned = entry(*lucky(BEFORE), test=TEST, validation=fresh)
        welch, student = (
            stats.ttest_ind(BEFORE, fresh, equal_var=equal).pvalue for equal in (False, True)
        )
        said = bool(findings(race(adamw=tuned), "worse-than-default"))
        assert said == (np.mean(BEFORE) > np.mean(fresh) and welch < 0.05)
        decided.append((said, student < 0.05))
    assert {(True, True), (False, True), (False, False)} <= set(decided)


def test_defaults_without_spread_are_judged_without_a_warning():
    for before, fresh in (([0.95] * 6, [*BEFORE[:5], 0.9]), ([0.95] * 6, [0.9] * 6)):
        tuned = entry(*lucky(before), test=TEST, validation=fresh)
        said = bool(findings(race(adamw=tuned), "worse-than-default"))
        assert said == (fresh == [0.9] * 6)


def test_defaults_that_diverged_or_were_chosen_are_no_measure():
    fresh = [0.90, 0.91, 0.90, 0.89, 0.92, 0.90]
    poor = [v - 0.8 for v in fresh]  # worse than those defaults even if one counts as 0
    for before, said in (([*BEFORE[:5], 0.0], True), ([*BEFORE[:5], None], False)):
        tuned = entry(*lucky(before), test=TEST, validation=poor)
        assert bool(findings(race(adamw=tuned), "worse-than-default")) == said
    # the defaults themselves, run again on other seeds: nothing lucky was chosen
    kept = entry(tried(*[(10.0**-i, 0.95 - i / 100) for i in range(5)]), test=TEST)
    assert kept["chosen"] == [0, 5, 10, 15, 20, 25]
    assert not findings(race(adamw={**kept, "validation": fresh}), "worse-than-default")
    untuned = entry(GOOD[:1], test=TEST, validation=fresh)
    assert not findings(race(trials=1, adamw=untuned), "worse-than-default")


# --- inclusion


def test_an_entry_that_loses_to_its_own_special_case():
    summary = race(adam=entry(GOOD, test=LOSS), momentum=entry(GOOD, test=TEST))
    found = findings(summary, "inclusion")
    assert set(found) == {"adam"}  # adamw ties with momentum
    assert "adam (93.47) loses to momentum (95.40) over n=6 seeds" in found["adam"]
    assert "give --search adam.eps=LOW:HIGH before" in found["adam"]
    searched = {**LR, "eps": [1e-8, 1.0]}
    tuning = [
        {**t, "hyperparameters": {**t["hyperparameters"], "eps": 10.0**-i}}
        for i, t in enumerate(GOOD)
    ]
    more = race(adam=entry(tuning, test=LOSS, space=searched), momentum=entry(GOOD, test=TEST))
    assert "give more --trials" in findings(more, "inclusion")["adam"]


def test_losses_to_special_cases_are_corrected_for_their_number():
    # p = 0.03 of one pair: a finding alone, and none among three pairs
    lower = [-0.001, 0.004, 0.005, 0.0, 0.006, 0.0045]
    d = [v - x for v, x in zip(TEST, lower, strict=True)]
    p = stats.ttest_rel(d, TEST).pvalue
    assert 0.05 / 3 < p < 0.05
    one = race(sgd=entry(GOOD, test=TEST), rmsprop=entry(GOOD, test=d))
    assert set(findings(one, "inclusion")) == {"rmsprop"}
    more = {name: entry(GOOD, test=STEADY) for name in ("momentum", "nesterov")}
    three = race(sgd=entry(GOOD, test=STEADY), rmsprop=entry(GOOD, test=d), **more)
    assert findings(three, "inclusion") == {}


def test_no_loss_no_inclusion():
    won = race(adam=entry(GOOD, test=TEST), momentum=entry(GOOD, test=LOSS))
    assert findings(won, "inclusion") == {}
    assert set(findings({**won, "maximize": False}, "inclusion")) == {"adam", "adamw"}
    noise = [v + x for v, x in zip(TEST, (0.02, -0.03, 0.01, -0.02, 0.0, 0.0), strict=True)]
    assert not findings(
        race(adam=entry(GOOD, test=noise), momentum=entry(GOOD, test=TEST)), "inclusion"
    )


def path(name, steps=400, **hyper):
    """The steps that a rule takes along a sequence of gradients."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = steepest.optimizer(name, [p], backend="eager", **hyper)
    moves = []
    for _ in range(steps):
        before = p.detach().clone()
        p.grad = 1 + torch.randn(5, dtype=torch.float64, generator=generator)
        optimizer.step()
        moves.append(p.detach() - before)
    return torch.stack(moves)


INCLUDES = {(n, s): about for n, r in steepest.rules.items() for s, about in r.includes.items()}


@pytest.mark.parametrize(("general", "special"), INCLUDES)
def test_what_is_declared_as_included_is(general, special):
    knob, how = INCLUDES[general, special]
    if how == "a large eps":  # in the limit, and where the bias corrections have worn off
        hyper = {"rmsprop": {}, "momentum": {"momentum": 0.9}}.get(special, {})
        big = path(general, steps=3000, lr=1.0, eps=1e6)[-50:]
        small = path(special, steps=3000, lr=1.0, **hyper)[-50:]
        ratio = big / small
        assert ratio.std() / ratio.mean() < 0.06
        return
    value = float(how.partition("=")[2])
    rates = {"lr": 0.01, "weight_decay": 0.0} if knob != "weight_decay" else {"lr": 0.01}
    assert torch.allclose(
        path(general, **{**rates, knob: value}), path(special, lr=0.01), rtol=1e-5
    )


# --- schedules


def test_what_comes_after_the_end_of_the_run():
    short = race(steps=300, adabound=entry(GOOD, test=STEADY), asgd=entry(GOOD, test=STEADY))
    found = findings(short, "schedule")
    said = "halfway to SGD at step 1,000 (gamma=0.001), but a run ends at step 300;"
    assert said in found["adabound"]
    assert "begins to average at step 1,000,000" in found["asgd"]
    assert not findings(race(steps=1000, adabound=entry(GOOD, test=STEADY)), "schedule")
    named = race(steps=300, **{"adabound+cosine": entry(GOOD, test=STEADY)})
    assert "adabound+cosine" in findings(named, "schedule")


def test_horizons_name_knobs_that_their_rules_have():
    clocks = [(r, *each) for r in steepest.rules.values() for each in r.clocks.items()]
    assert len(clocks) == 3
    for rule, knob, clock in clocks:
        value = rule.defaults[knob]
        assert clock.value(clock.step(value)) == pytest.approx(value)


# --- the test set


def test_a_claim_smaller_than_what_the_test_cases_may_make_of_it():
    shifted = [v + 1e-3 + x for v, x in zip(TEST, (0, 1e-4, 0, 2e-4, 0, 1e-4), strict=True)]
    summary = race(adam=entry(GOOD, test=shifted))
    wrong = 2 - np.mean(TEST) - np.mean(shifted)
    d = np.mean(shifted) - np.mean(TEST)
    error = np.sqrt((wrong - d**2) / 597)
    found = findings(summary, "test-noise")
    assert "adam differs by 0.11, but with only n=" in found["adam"]
    assert "with only n=597 test cases" in found["adam"]
    assert f"may be as large as {100 * error:.2f}, so" in found["adam"]
    assert findings({**summary, "test_size": 200_000}, "test-noise") == {}
    assert findings({**summary, "test_size": 0}, "test-noise") == {}


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_choice_of_cases_moves_a_difference_by_no_more_than_is_said(shared):
    # two that are wrong on 5 and 4 % of a population, `shared` of it on the same cases
    rng, cases, seeds = np.random.default_rng(0), 200, 10
    moved = []
    for _ in range(400):
        hard = rng.random(cases)  # the same for all seeds, as cases are
        both = rng.random((seeds, cases)) < shared
        a, b = (np.where(both, hard, rng.random((seeds, cases))) < share for share in (0.05, 0.04))
        moved.append(a.mean() - b.mean())
    assert np.std(moved) <= 1.05 * np.sqrt((0.05 + 0.04 - 0.01**2) / cases)


# --- in words


def test_an_entry_that_computes_much_more_than_the_baseline():
    summary = race(costly=entry(GOOD, test=STEADY), fair=entry(GOOD, test=STEADY))
    base, costly, fair = (summary["entries"][name] for name in ("adamw", "costly", "fair"))
    assert not any(f["name"] == "cost" for f in lint(summary))  # nobody has counted
    base["gradients"], costly["gradients"], fair["gradients"] = 2000.0, 3001.0, 3000.0
    (found,) = [f for f in lint(summary) if f["name"] == "cost"]
    assert found["entry"] == "costly"
    assert "costly computed 3,001 gradients of a batch for its 2,000 steps" in found["text"]
    assert "adamw computed 2,000, so a step of costly costs 1.5 times as much" in found["text"]


def test_lint_is_spoken():
    lost = tried((1e-3, 0.95), (0.1, None), (0.05, None), (0.02, None), (0.09, None))
    summary = race(adam=entry(lost, test=STEADY))
    summary["lint"] = lint(summary)
    assert any("adam is untuned" in line for line in caveats(summary))


def test_a_race_in_which_nothing_was_tuned_says_so_once():
    summary = race(trials=1, adam=entry(GOOD[:1], test=STEADY), sgd=entry(GOOD[:1], test=TEST))
    summary["lint"] = lint(summary)
    lines = caveats(summary)
    assert [line for line in lines if "tuned" in line] == [
        "Nothing was tuned: every entry, including adamw, ran with its defaults for 2000 steps on "
        "6 fresh seeds; give --trials 5 or more."
    ]
    said = verdict(summary)
    assert said.startswith("Not enough tuning: 1 trial of an entry for each fresh seed,")
    assert "undecided" in said
    assert "keep" not in said


@pytest.mark.parametrize("trials", [1, 2, 4, 5])
def test_too_little_tuning_is_said_with_what_would_be_enough(trials):
    summary = race(trials=trials, adam=entry(GOOD[:trials], test=LOSS))
    said = verdict(summary)
    assert said.startswith("Not enough tuning: ") == (trials < 5)
    assert ("a verdict needs at least 5; give --trials 5 or more" in said) == (trials < 5)
    assert ("so keep adamw" in said) == (trials == 5)
    assert "worse than adamw in test accuracy: adam by 1.93 points" in said
    if trials < 5:
        summary["plan"] |= {"enough": 187.0, "entries": ["adamw", "adam", "sgd"]}
        assert "give --budget 190s or more, or fewer --optimizers" in verdict(summary)
        summary["plan"]["entries"] = ["adamw", "adam"]
        assert "fewer" not in verdict(summary)
        assert "--seeds" not in verdict(summary)
        summary["plan"]["enough"] = 1201.0
        assert "give --budget 21m or more" in verdict(summary)


def test_keep_the_baseline_is_a_verdict():
    noise = [v + x for v, x in zip(TEST, (0.02, -0.03, 0.02, -0.01, 0.01, 0.0), strict=True)]
    said = verdict(race(adam=entry(GOOD, test=noise)))
    assert said.startswith("Undecided: adam cannot be told apart from adamw in test accuracy at n=")
    assert "keep" not in said
    small = verdict(race(adam=entry(GOOD, test=STEADY)))
    assert small.startswith("adam cannot be told apart from adamw in test accuracy at n=6 fresh se")
    high = stats.ttest_rel(STEADY, TEST).confidence_interval().high
    most = f"adam is better by at most {100 * high:.2f} points (95 % interval). That is less than a"
    assert most in small
    sd = 100 * stats.median_abs_deviation(TEST, scale="normal")
    assert f"standard deviation of adamw between seeds ({sd:.2f} points, from the median" in small
    assert "so keep adamw" in small
    same = verdict(race(adam=entry(GOOD, test=TEST)))
    assert "so keep adamw. The same as adamw on every seed: adam" in same
    worse = verdict(race(adam=entry(GOOD, test=LOSS)))
    assert "worse than adamw in test accuracy: adam by 1.93 points" in worse
    assert "so keep adamw" in worse
    better = verdict(race(maximize=False, adam=entry(GOOD, test=LOSS)))
    assert "better than adamw" in better
    assert "keep" not in better


def test_one_rival_that_may_be_better_leaves_it_undecided():
    noise = [v + x for v, x in zip(TEST, (0.02, -0.03, 0.02, -0.01, 0.01, 0.0), strict=True)]
    said = verdict(race(adam=entry(GOOD, test=LOSS), sgd=entry(GOOD, test=noise)))
    assert "worse than adamw in test accuracy: adam" in said
    assert "Undecided: sgd is not told apart from adamw." in said
    assert "keep" not in said
    both = verdict(race(adam=entry(GOOD, test=LOSS), sgd=entry(GOOD, test=STEADY)))
    assert "Not told apart from adamw: sgd. sgd is better by at most" in both
    assert "so keep adamw" in both


def test_a_baseline_that_failed_is_not_kept():
    lost = [0.0, *TEST[1:]]
    summary = race(adamw=entry(GOOD, test=lost, lost=1), adam=entry(GOOD, test=STEADY))
    d = compare({"adam": np.subtract(STEADY, lost)}, failed=["adam"])["adam"]
    summary["entries"]["adam"]["difference"] = vars(d)
    assert "keep" not in verdict(summary)


def test_the_verdict_says_what_would_decide_more_and_names_no_number_that_would_tell():
    noise = [v + x for v, x in zip(TEST, (0.02, -0.01, 0.03, -0.01, 0.02, 0.0), strict=True)]
    summary = race(adam=entry(GOOD, test=noise))
    said = verdict(summary)
    assert "A new race with --seeds 24 --seed 1 would have intervals about half as wide." in said
    assert "tell" not in said.partition(". ")[2]


BETTER, WORSE = "up to {:.2f} points better", "up to {:.2f} points worse"


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(
    ("shift", "claim"), [(0.0, None), (0.01, None), (-0.01, None), (0.1, "better"), (-0.1, "worse")]
)
def test_what_remains_possible_is_said_for_both_directions(shift, claim, maximize):
    sign = 1 if maximize else -1
    noise = np.array([0.02, -0.03, 0.02, -0.01, 0.01, 0.0])
    test = [v + sign * (shift + x) for v, x in zip(TEST, noise, strict=True)]
    said = verdict(race(maximize=maximize, adam=entry(GOOD, test=test)))
    # better is up, or down: the interval of the improvement, whatever the direction
    interval = stats.ttest_1samp(sign * np.subtract(test, TEST), 0).confidence_interval()
    if claim:
        by = f"{100 * min(abs(interval.low), abs(interval.high)):.2f} to "
        assert f"{claim} than adamw" in said
        assert by + f"{100 * max(abs(interval.low), abs(interval.high)):.2f})" in said
        assert "remains possible" not in said
        return
    better = BETTER.format(100 * interval.high) + " (adam, 95 % interval)"
    worse = WORSE.format(-100 * interval.low) + " (adam, 95 % interval)"
    assert f"It remains possible that an entry is {better} or {worse}." in said


@pytest.mark.parametrize("maximize", [True, False])
def test_each_direction_names_the_entry_that_goes_farthest_in_it(maximize):
    sign = 1 if maximize else -1
    noise = np.array([0.02, -0.03, 0.02, -0.01, 0.01, 0.0])
    ends = {
        name: [v + sign * (shift + x) for v, x in zip(TEST, noise, strict=True)]
        for name, shift in (("sgd", 0.01), ("adam", -0.01))
    }
    summary = race(maximize=maximize, **{e: entry(GOOD, test=test) for e, test in ends.items()})
    said = verdict(summary)
    far = summary["entries"]["sgd"]["difference"], summary["entries"]["adam"]["difference"]
    better = far[0]["high"] if maximize else -far[0]["low"]
    worse = -far[1]["low"] if maximize else far[1]["high"]
    assert f"{BETTER.format(100 * better)} (sgd, 97.5 % interval)" in said
    assert f"{WORSE.format(100 * worse)} (adam, 97.5 % interval)." in said


@pytest.mark.parametrize("n", [6, 10, 20])
def test_four_times_the_seeds_make_an_interval_about_half_as_wide(n):
    rng = np.random.default_rng(0)

    def width(n):
        d = rng.normal(size=(2000, n))
        return np.mean(stats.t.isf(0.025, n - 1) * d.std(axis=1, ddof=1) / np.sqrt(n))

    assert 0.35 < width(4 * n) / width(n) < 0.5


def test_too_few_seeds_for_the_exact_test_are_said():
    lost = [0.0, *[v - 0.02 for v in TEST[1:]]]
    rivals = {name: entry(GOOD, test=STEADY) for name in ("adam", "sgd")}
    summary = race(bad=entry(GOOD, test=lost, lost=1), **rivals)
    said = verdict(summary)
    assert "The exact test (bad) needs n=7 fresh seeds or more for a claim over 3 comp" in said
    assert "--seeds 7 --seed 1" in said
    alone = verdict(race(bad=entry(GOOD, test=lost, lost=1)))
    assert "worse than adamw in test accuracy: bad" in alone  # p is 2 / 64


def test_what_is_better_comes_with_how_often_it_may_fail():
    better = [v + 0.02 + x for v, x in zip(TEST, (0, 1e-3, 2e-3, 0, 1e-3, 0), strict=True)]
    summary = race(adam=entry(GOOD, test=better))
    said = verdict(summary)
    bound = 100 * (1 - 0.05 ** (1 / 6))
    assert f"adam: 0 of n=6 fresh runs failed (the true rate may be up to {bound:.0f} %" in said
    lines = caveats(summary)
    assert any(line.startswith("Every entry: 0 of n=6 fresh runs each failed") for line in lines)
    some = caveats(race(adam=entry(GOOD, test=[0.0, *better[1:]], lost=1)))
    assert any("failed (the true rate may be up to 58 %" in line for line in some)


def test_a_verdict_without_test_data_says_so():
    said = verdict({**race(adam=entry(GOOD, test=LOSS)), "test_data": False})
    assert "validation accuracy of fresh seeds (the task has no test data)" in said
    assert "test accuracy" not in said


def test_what_stands_beside_a_difference():
    summary = race(adam=entry(GOOD, test=LOSS))
    text = beside(summary, "adam")
    assert "better than adamw on 0 % of n=6 seeds (95 % interval 0 to 46 %)" in text
    assert "effect size" in text
    assert "standard deviations of the differences (Hedges)" in text
    assert beside(summary, "adamw") is None


def test_how_careful_one_must_be():
    summary = race()
    width = {"seen": 0.5, "tunings": 6, "points": 5}
    summary["entries"]["adamw"]["lr_width"] = width
    said = care(summary, "adamw")
    assert "over 0.5 decades of learning rates (median of n=6 tunings with" in said
    assert "up to 5 rates each: a rough estimate)" in said
    width["tunings"] = 1
    assert "(from n=1 tuning with" in care(summary, "adamw")
    width["points"] = 1
    assert care(summary, "adamw") is None
