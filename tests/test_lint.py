"""What lint finds in a race, and what is said of it: each finding on, and just off."""

import copy

import pytest
import torch

import steepest
from steepest.race.lint import HORIZONS, INCLUDES, RULES, lint, untuned_because
from steepest.race.statistics import compare
from steepest.race.wording import beside, care, caveats, verdict

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


def entry(tuning, test, *, space=LR, validation=None, lost=0):
    scores = [trial["validation"] for trial in tuning]
    best = scores.index(max(scores))
    return {
        "space": space,
        "untuned": untuned_because(tuning),
        "hyperparameters": tuning[best]["hyperparameters"],
        "best_trial": best,
        "trials": len(tuning),
        "tuning": tuning,
        "validation": validation or test,
        "test": test,
        "diverged": {"tuning": 0, "fresh": lost},
        "difference": None,
    }


GOOD = tried((1e-3, 0.95), (1e-4, 0.9), (3e-3, 0.96), (1e-2, 0.94), (5e-2, 0.5))
TEST = [0.950, 0.955, 0.960, 0.958, 0.952, 0.949]
STEADY = [v + x for v, x in zip(TEST, (1e-4, 0, -1e-4, 1e-4, 0, 2e-4), strict=True)]


def race(maximize=True, steps=2000, **entries):
    entries = {"adamw": entry(GOOD, TEST), **entries}
    for name, d in compare(
        {
            name: [a - b for a, b in zip(e["test"], TEST, strict=True)]
            for name, e in entries.items()
            if name != "adamw"
        },
        maximize=maximize,
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
        "plan": {"trials": 5, "seeds": len(TEST), "steps": steps, "over_budget": False},
        "test_size": 597,
        "entries": entries,
    }


def findings(summary, name):
    return {f["entry"]: f["text"] for f in lint(summary) if f["name"] == name}


def test_a_good_race_has_no_finding():
    assert lint(race(adam=entry(GOOD, STEADY))) == []


def test_an_interrupted_race_is_not_judged():
    assert lint({**race(), "complete": False, "entries": {}}) == []


def test_every_finding_is_one_sentence_with_a_number_and_a_cure():
    bad = entry(tried((1e-3, 0.9), (0.09, None), (0.01, None)), [0.1] * 6, lost=3)
    edge = entry(tried((1e-3, 0.9), (1e-2, 0.93), (0.09, 0.96)), [0.90] * 5 + [0.91])
    found = lint(race(steps=300, adabound=bad, adam=edge, momentum=entry(GOOD, STEADY)))
    assert {f["name"] for f in found} >= {"untuned", "diverged", "border", "schedule", "inclusion"}
    assert {f["name"] for f in found} <= set(RULES)
    for f in found:
        assert set(f) == {"name", "entry", "text"}
        assert f["entry"] in f["text"]
        assert any(c.isdigit() for c in f["text"])
        assert f["text"].count(";") == 1
        assert "\n" not in f["text"]
        assert f["text"][-1] != "."


# --- untuned


def test_untuned():
    one = entry(GOOD[:1], TEST)
    none = entry([{**t, "hyperparameters": {}} for t in GOOD], TEST, space={})
    lost = entry(tried((1e-3, 0.95), (0.1, None), (0.05, None)), TEST)
    found = findings(race(a=one, b=none, c=lost), "untuned")
    assert set(found) == {"a", "b", "c"}
    assert "1 configuration" in found["a"]
    assert "0 knobs" in found["b"]
    assert "all of its 2 trials but the defaults diverged" in found["c"]


def test_one_trial_that_trains_is_tuning():
    assert untuned_because(tried((1e-3, 0.95), (0.1, None), (0.05, 0.1))) is None
    # the defaults may diverge: then something else was chosen
    assert untuned_because(tried((1e-3, None), (1e-4, 0.5))) is None


# --- the border


@pytest.mark.parametrize(
    ("best", "side"), [(0.08, "upper"), (0.2, "upper"), (1.5e-5, "lower"), (1e-6, "lower")]
)
def test_the_best_at_the_border(best, side):
    tuning = tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.93), (best, 0.99))
    found = findings(race(adam=entry(tuning, STEADY)), "border")
    assert f"{best:.3g}, is the last of 4 tried at the {side} border" in found["adam"]


@pytest.mark.parametrize(
    "tuning",
    [
        tried((1e-3, 0.9), (1e-4, 0.8), (1e-2, 0.99)),  # the last one tried, but far from it
        tried((1e-3, 0.9), (0.08, 0.99), (0.09, 0.9)),  # something beyond it was worse
        tried((1e-3, 0.9), (0.08, 0.99), (0.09, None)),  # or diverged
        tried((1e-4, 0.9), (0.09, 0.99), (1e-3, 0.99)),  # as good in the middle
        tried((1e-3, 0.9), (0.09, 0.99)),  # of two, one is always last
        tried((1e-3, None), (1e-4, None), (0.09, None)),
    ],
)
def test_no_border(tuning):
    assert findings(race(adam=entry(tuning, STEADY)), "border") == {}


def test_the_border_of_every_knob():
    space = {**LR, "final_lr": [1e-3, 10.0]}
    tuning = copy.deepcopy(GOOD)
    for trial, value in zip(tuning, (0.1, 1.0, 9.0, 0.01, 2.0), strict=True):
        trial["hyperparameters"]["final_lr"] = value
    found = findings(race(adabound=entry(tuning, STEADY, space=space)), "border")
    assert "the best final_lr of adabound, 9, is" in found["adabound"]


# --- few trials


def test_too_few_trials_for_the_knobs():
    two = {**LR, "final_lr": [1e-3, 10.0]}
    tuning = [
        {**t, "hyperparameters": {**t["hyperparameters"], "final_lr": 0.1 + i}}
        for i, t in enumerate(GOOD)
    ]
    found = findings(race(adabound=entry(tuning, STEADY, space=two)), "few-trials")
    assert found == {
        "adabound": "adabound has 2 knobs and 4 points beside its defaults; give --trials 9 or more"
    }
    four = race(a=entry(GOOD[:4], TEST))
    four["plan"]["trials"] = 4
    assert "a has 1 knob and 3 points" in findings(four, "few-trials")["a"]


# --- divergence


def test_a_diverged_best():
    all_lost = entry(tried((1e-3, None), (1e-2, None), (1e-4, None)), [0.0] * 6, lost=6)
    found = findings(race(a=all_lost, b=entry(GOOD, STEADY, lost=2)), "diverged")
    assert "all 3 tuning trials of a diverged" in found["a"]
    assert "diverged on 2 of 6 fresh seeds" in found["b"]


# --- worse than its default


def test_a_baseline_tuned_worse_than_its_defaults():
    lucky = tried((1e-3, 0.95), (0.04, 0.99), (1e-4, 0.3), (1e-5, 0.2), (1e-2, 0.9))
    fresh = [0.90, 0.91, 0.90, 0.89, 0.92, 0.90]
    found = findings(race(adamw=entry(lucky, TEST, validation=fresh)), "worse-than-default")
    assert "reached 90.33 in validation on 6 fresh seeds, its defaults 95.00" in found["adamw"]
    wide = [0.90, 0.97, 0.85, 0.89, 0.99, 0.80]  # a new run could reach 0.95 by chance
    assert not findings(race(adamw=entry(lucky, TEST, validation=wide)), "worse-than-default")
    higher = [0.97 + x / 10 for x in fresh]
    assert not findings(race(adamw=entry(lucky, TEST, validation=higher)), "worse-than-default")
    down = race(maximize=False, adamw=entry(lucky, TEST, validation=higher))
    assert findings(down, "worse-than-default")


# --- inclusion

LOSS = [v - 0.02 + x for v, x in zip(TEST, (0, 1e-3, 2e-3, 0, 1e-3, 0), strict=True)]


def test_an_entry_that_loses_to_its_own_special_case():
    summary = race(adam=entry(GOOD, LOSS), momentum=entry(GOOD, TEST))
    found = findings(summary, "inclusion")
    assert set(found) == {"adam"}  # adamw ties with momentum
    assert "adam (93.47) loses to momentum (95.40) at n=6" in found["adam"]
    assert "search its eps" in found["adam"]
    searched = {**LR, "eps": [1e-8, 1.0]}
    tuning = [
        {**t, "hyperparameters": {**t["hyperparameters"], "eps": 10.0**-i}}
        for i, t in enumerate(GOOD)
    ]
    more = race(adam=entry(tuning, LOSS, space=searched), momentum=entry(GOOD, TEST))
    assert "give it more trials" in findings(more, "inclusion")["adam"]


def test_no_loss_no_inclusion():
    won = race(adam=entry(GOOD, TEST), momentum=entry(GOOD, LOSS))
    assert findings(won, "inclusion") == {}
    assert set(findings({**won, "maximize": False}, "inclusion")) == {"adam", "adamw"}
    noise = [v + x for v, x in zip(TEST, (0.02, -0.03, 0.01, -0.02, 0.0, 0.0), strict=True)]
    assert not findings(race(adam=entry(GOOD, noise), momentum=entry(GOOD, TEST)), "inclusion")


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
    short = race(steps=300, adabound=entry(GOOD, STEADY), asgd=entry(GOOD, STEADY))
    found = findings(short, "schedule")
    assert "halfway to SGD at step 1,000 (gamma=0.001) and the run has 300;" in found["adabound"]
    assert "begins to average at step 1,000,000" in found["asgd"]
    assert not findings(race(steps=1000, adabound=entry(GOOD, STEADY)), "schedule")
    named = race(steps=300, **{"adabound+cosine": entry(GOOD, STEADY)})
    assert "adabound+cosine" in findings(named, "schedule")


def test_a_schedule_longer_than_the_run():
    planned = {**entry(GOOD, STEADY), "schedule_steps": 500}
    assert "made for 500 steps" in findings(race(steps=300, x=planned), "schedule")["x"]
    assert not findings(race(steps=500, x=planned), "schedule")


def test_horizons_name_knobs_that_their_rules_have():
    for rule, (knob, acts, _) in HORIZONS.items():
        assert acts(steepest.rules[rule].defaults[knob]) > 0


# --- the test set


def test_a_claim_smaller_than_the_test_sets_own_error():
    shifted = [v + 1e-3 + x for v, x in zip(TEST, (0, 1e-4, 0, 2e-4, 0, 1e-4), strict=True)]
    summary = {**race(adam=entry(GOOD, shifted)), "test_standard_error": 0.0086}
    found = findings(summary, "test-noise")
    assert "adam differs by 0.11, less than the standard error 0.86" in found["adam"]
    assert findings({**summary, "test_standard_error": 0.0009}, "test-noise") == {}
    assert findings(race(adam=entry(GOOD, shifted)), "test-noise") == {}


# --- in words


def test_lint_is_spoken():
    summary = race(adam=entry(GOOD[:1], STEADY))
    summary["lint"] = lint(summary)
    assert any("adam is untuned" in line for line in caveats(summary))


def test_keep_the_baseline_is_a_verdict():
    noise = [v + x for v, x in zip(TEST, (0.02, -0.03, 0.02, -0.01, 0.01, 0.0), strict=True)]
    said = verdict(race(adam=entry(GOOD, noise)))
    assert "adam cannot be told apart from adamw in test accuracy" in said
    assert "at n=6 fresh seeds, so keep adamw" in said
    worse = verdict(race(adam=entry(GOOD, LOSS)))
    assert "worse than adamw in test accuracy: adam by 1.93 points" in worse
    assert "so keep adamw" in worse
    better = verdict(race(maximize=False, adam=entry(GOOD, LOSS)))
    assert "better than adamw" in better
    assert "keep" not in better


def test_the_verdict_says_how_many_seeds_would():
    noise = [v + x for v, x in zip(TEST, (0.02, -0.01, 0.03, -0.01, 0.02, 0.0), strict=True)]
    summary = race(adam=entry(GOOD, noise))
    needed = summary["entries"]["adam"]["difference"]["seeds_needed"]
    assert 6 < needed < 100
    assert f"; about {needed} seeds would tell it apart if" in verdict(summary)
    zero = [v + x for v, x in zip(TEST, (0.01, -0.01, 0.01, -0.01, 0.01, -0.01001), strict=True)]
    assert "not even 10,000 seeds would" in verdict(race(adam=entry(GOOD, zero)))


def test_a_verdict_without_test_data_says_so():
    said = verdict({**race(adam=entry(GOOD, LOSS)), "test_data": False})
    assert "validation accuracy of fresh seeds (the task has no test data)" in said
    assert "test accuracy" not in said


def test_what_stands_beside_a_difference():
    summary = race(adam=entry(GOOD, LOSS))
    text = beside(summary, "adam")
    assert "better than adamw on 0 % of n=6 seeds (0 to 46 %)" in text
    assert "standard deviations of the differences (Hedges)" in text
    assert beside(summary, "adamw") is None


def test_how_careful_one_must_be():
    summary = race()
    summary["entries"]["adamw"]["lr_width"] = {
        "at_least": 0.5, "at_most": 1.25, "within": 2, "points": 5,
    }  # fmt: skip
    said = care(summary, "adamw")
    assert said == (
        "2 neighbouring of n=5 learning rates come within 1 % of the best: 0.5 decades or more, "
        "1.2 at most"
    )
    summary["entries"]["adamw"]["lr_width"]["at_most"] = None
    assert care(summary, "adamw").endswith("up to the border of what was tried")
    summary["entries"]["adamw"]["lr_width"]["points"] = 1
    assert care(summary, "adamw") is None
