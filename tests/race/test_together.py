"""Trials at once: the results of the trials one by one; when a race chooses to train so."""

import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steepest import tasks
from steepest.errors import BadCall, WorkerError
from steepest.race import driver, halving, planning, protocol, together, trials
from steepest.race.measured import measure
from steepest.race.protocol import Plan, Result, Trial, Tuning
from steepest.race.request import Request
from steepest.tasks.randomness import OwnStates
from steepest.tasks.task import Setup

RUNGS = ((7, 2), (14, 1))
FACTS = ("steps", "halted", "diverged", "batches", "draws", "initial", "first", "unread", "calls")
FACTS += ("state_bytes", "parameters", "backends", "test", "tested", "measures")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # two wait for each other on a busy machine; conftest sets it back


def trials_of(entry, rates, steps=21, task="diabetes"):
    knobs = protocol.Recipe.read(entry).defaults
    return tuple(
        Trial(task, protocol.TUNING, entry, i, 50 + i, steps, {**knobs, "lr": rate})
        for i, rate in enumerate(rates)
    )


def one_by_one(tuning, task):
    """Whole runs, cut by hand where the rule of halving says."""
    return [
        result
        for i in range(0, len(tuning.trials), tuning.each)
        for result in halving.run(
            replace(tuning, trials=tuning.trials[i : i + tuning.each], each=0),
            lambda trial, on_report=None: measure(trial, task, on_report),
            task.better,
        )
    ]


def same(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert {f: getattr(a, f) for f in FACTS} == {f: getattr(b, f) for f in FACTS}
        assert a.validation == pytest.approx(b.validation, rel=tolerance)


@pytest.mark.parametrize(
    "entry",
    ["adamw", "momentum+cosine", "adam+noise+clip", "schedule_free_adamw", "torch.optim:SGD"],
)
def test_results_are_those_of_the_trials_one_by_one(monkeypatch, entry):
    monkeypatch.setattr(halving, "can_fork", lambda: False)
    task = tasks.get("diabetes")
    asked = Tuning(trials_of(entry, (1e-3, 3e-3, 1e-2, 3e-2) * 2), RUNGS, 4)
    results = together.run(asked, task)
    same(results, one_by_one(asked, task))
    assert [r.steps[-1] for r in results].count(21) == 2  # one of each tuning went on to the end


def test_a_trial_that_diverges_does_not_touch_the_others(monkeypatch):
    monkeypatch.setattr(halving, "can_fork", lambda: False)
    task = tasks.get("diabetes")
    asked = Tuning(trials_of("sgd", (1e-2, 1e20, 3e-2, 1e-3)), (), 4)
    results = together.run(asked, task)
    assert [bool(r.diverged) for r in results] == [False, True, False, False]
    same(results, one_by_one(asked, task))


def test_the_times_leave_out_the_other_trials():
    asked = Tuning(trials_of("adam", (1e-3,) * 8, steps=7), (), 8)
    start = together.perf_counter()
    results = together.run(asked, tasks.get("diabetes"))
    assert 0 < sum(r.wall_seconds for r in results) <= together.perf_counter() - start
    assert all(0 < r.seconds[-1] <= r.wall_seconds for r in results)


def drawing(generators):
    """A task whose batches draw from the process's own generators."""

    def build(seed, **_):
        model = nn.Linear(3, 1)

        def batches():
            while True:
                noise = [torch.rand(4), torch.tensor(np.random.rand(4)).float()]
                noise.append(torch.tensor([random.random() for _ in range(4)]))
                yield torch.stack([noise[g] for g in generators], 1)

        def loss(model, batch):
            return model(batch).square().mean()

        return Setup(model, batches(), loss, lambda m, _: m.weight.sum().item())

    return replace(tasks.get("diabetes"), build=build, every=3)


def test_each_trial_has_random_states_of_its_own():
    task = drawing([0, 1, 2])
    asked = Tuning(trials_of("sgd", (0.1, 0.01, 0.1), steps=6), (), 3)
    results = together.run(asked, task)
    same(results, [measure(trial, task, None) for trial in asked.trials])
    assert results[0].batches != results[2].batches


def test_states_of_the_process_come_back():
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    expected = torch.rand(2).tolist(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    own, drawn = OwnStates(), []
    for _ in range(2):
        with own.active():
            if not drawn:
                torch.manual_seed(7), np.random.seed(7), random.seed(7)
            drawn.append((float(torch.rand(())), np.random.rand(), random.random()))
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    again = [(float(torch.rand(())), np.random.rand(), random.random()) for _ in range(2)]
    assert drawn == again


def test_a_model_that_cannot_be_stacked_is_named():
    task = tasks.get("text")  # an LSTM
    asked = Tuning(trials_of("adam", (0.1, 0.2), task="text"), (), 2)
    with pytest.raises(BadCall, match=r"adam on text cannot be trained together.*--together 0"):
        together.run(asked, task)


# which trials are trained together


def plan(entries=("adamw", "momentum"), **options):
    usual = {"trials": 8, "seeds": 12, "steps": 200, "seed": 0, "looks": (5, 8, 12), "repeats": 3}
    return Plan(**{"task": "digits", "entries": entries, "halving": True, **usual, **options})


@given(units=st.integers(0, 6), begin=st.integers(0, 20), of=st.integers(1, 9))
def test_every_tuning_is_in_one_item(units, begin, of):
    entries = ("adamw", "adam+early-stopping", "momentum+cosine")
    made = plan(entries, trials=4, together=units, seeds=40)
    asked = [
        Trial("digits", protocol.TUNING, e, u * 4 + k, 0, 200, {})
        for u in range(begin, begin + of)
        for k in range(4)
        for e in entries
    ]
    items = trials.tuning_items(made, asked)
    assert sorted(t.key for item in items for t in item.trials) == sorted(t.key for t in asked)
    for item in items:
        assert isinstance(item, Tuning)
        assert len({t.entry for t in item.trials}) == 1
        of_units = [t.index // 4 for t in item.trials]
        assert of_units == sorted(of_units)
        assert all(of_units.count(u) == 4 for u in of_units)
        stops = "early-stopping" in item.trials[0].entry
        assert item.each == (4 if units and not stops else 0)
        assert len(set(of_units)) <= (units or 1 if not stops else 1)


@pytest.mark.parametrize(
    ("entry", "stackable"),
    [
        ("adamw", True),
        ("adamw+warmup+cosine+noise+clip", True),
        ("torch.optim:AdamW", False),  # it may need a closure
        ("adamw+batchnorm", False),
        ("adamw+dropout", False),
        ("adamw+early-stopping", False),
        ("momentum+full-batch", False),
        ("adamw+curriculum", False),
        ("newton", False),
    ],
)
def test_entries_that_do_more_than_the_usual_step_are_trained_one_by_one(entry, stackable):
    assert protocol.Recipe.read(entry).stackable == stackable


# the choice


class Timed:
    """A pool whose runs take these seconds one by one, and at once."""

    def __init__(self, alone=1.0, at_once=0.5, **other):
        self.seconds, self.other, self.items = (alone, at_once), other, []

    def map(self, items, on_note=None):
        for item in items:
            self.items.append(item)
            at_once = isinstance(item, Tuning)
            result = Result(steps=[10], validation=[0.5], wall_seconds=self.seconds[at_once])
            if not at_once:
                yield item, result
            elif "error" in self.other:
                raise self.other["error"]
            else:
                yield item, [replace(result, **self.other) for _ in item.trials]


def chosen(pool, made=None, jobs=2):
    made = made or plan()
    return together.choose(made, tasks.get(made.task), pool, jobs).together


def test_what_is_faster_is_chosen():
    assert chosen(Timed(1.0, 0.5)) == 5
    assert chosen(Timed(1.0, 0.95)) == 0  # too little to be sure
    assert chosen(Timed(1.0, 2.0)) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"validation": [0.51]},
        {"validation": [float("nan")]},
        {"batches": ["f00"]},
        {"draws": ["f00"]},
        {"steps": [9]},
        {"diverged": "lost"},
        {"error": BadCall("no vmap")},
        {"error": WorkerError("it died")},
    ],
)
def test_where_the_numbers_differ_trials_are_trained_one_by_one(other):
    assert chosen(Timed(**other)) == 0


def test_rounding_is_no_difference():
    assert chosen(Timed(validation=[0.5 * (1 + 1e-6)])) == 5


@pytest.mark.parametrize(
    ("jobs", "units"), [(1, 5), (2, 5), (3, 4), (4, 3), (8, 2), (16, 1), (99, 1)]
)
def test_every_worker_keeps_work(jobs, units):
    assert chosen(Timed(), jobs=jobs) == units


def test_no_more_trials_at_once_than_gain_from_it():
    assert chosen(Timed(), plan(trials=30)) == 2
    assert chosen(Timed(), plan(trials=500)) == 1


@pytest.mark.parametrize(
    "made",
    [
        plan(steps=99),
        plan(looks=(), halving=False),
        plan(("adamw+early-stopping",)),
        plan(task="bag-of-words"),
    ],
    ids=["short", "fixed", "no entry", "own loop"],
)
def test_nothing_is_measured_where_nothing_can_be_gained(made):
    pool = Timed()
    assert chosen(pool, made) == 0
    assert pool.items == []


def test_the_measurement_uses_no_seed_of_the_race():
    pool, made = Timed(), plan()
    chosen(pool, made)
    measured = {t.seed for item in pool.items for t in item.trials}
    assert len(measured) == together.MEASURED
    assert measured.isdisjoint(t.seed for t in protocol.tuning(made))


FILE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MINIMIZE = "loss"
x = torch.linspace(-1, 1, 48).reshape(24, 2)
{before}

def task(seed):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    batches = DataLoader(TensorDataset(x), 8, shuffle=True)

    def loss(model, batch):
        value = (model(batch[0]) - batch[0].sum(1, True)).square().mean()
        {inside}
        return value

    return model, loss, batches, lambda model: loss(model, [x]).item()
"""


@pytest.mark.parametrize(
    ("before", "inside", "units"),
    [
        ("", "pass", 5),
        # one generator for all trials, which take turns
        ("g = torch.Generator()", "value = value + torch.rand((), generator=g) / 99", 0),
        ("", "value = value if value.item() < 1e9 else value / 2", 0),
        ("seen = []", "seen.append(1); value = value * (1 + len(seen))", 0),
    ],
    ids=["plain", "generator", "item", "state"],
)
def test_a_task_of_the_users_own(monkeypatch, tmp_path, before, inside, units):
    monkeypatch.setattr(together, "GAIN", 0)
    monkeypatch.setattr(halving, "can_fork", lambda: False)
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(before=before, inside=inside))
    assert chosen(Here(), plan(("adamw",), task=str(file), trials=4), jobs=1) == units


# a race


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    """The folder and the summary of one race trained at once, and of one trained one by one."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halving, "can_fork", lambda: False)
        for units in (2, 0):
            folder = tmp_path_factory.mktemp("races") / str(units)
            asked = Request("diabetes", "adamw,momentum", 4, steps=14, looks="3,5", together=units)
            made[units] = folder, driver.race(asked, folder, jobs=1, pool=Here())[0]
    return made


class Here:
    """A pool of no process."""

    def map(self, items, on_note=None):
        for item in items:
            if item is not None:
                yield item, trials.run(item)


def test_a_race_makes_the_same_choices(races):
    at_once, alone = (races[units][1] for units in (2, 0))
    for name, entry in at_once["entries"].items():
        other = alone["entries"][name]
        assert entry["chosen"] == other["chosen"]
        assert [t["halted"] for t in entry["tuning"]] == [t["halted"] for t in other["tuning"]]
        assert entry["test"] == pytest.approx(other["test"], rel=1e-5)


def test_a_race_says_that_trials_were_trained_at_once(races):
    from steepest.race.notes import caveats

    text = " ".join(caveats(races[2][1]))
    assert "trained at once, up to 8 of an entry" in text
    assert "trained at once" not in " ".join(caveats(races[0][1]))
    assert "--together 2" in races[2][1]["reproduce"]
    assert "--together 0" in races[0][1]["reproduce"]


def test_the_choice_is_stored(races):
    folder = races[2][0]
    again = Request("diabetes", together=0)
    with pytest.raises(BadCall, match=r"--together 0: the race in .* was started with 2"):
        driver.race(again, folder, jobs=1, pool=Here(), resume=True)
    summary, _ = driver.race(Request("diabetes"), folder, jobs=1, pool=Here(), resume=True)
    assert summary["plan"]["together"] == 2


def test_a_plan_from_before_is_trained_one_by_one():
    record = asdict(plan())
    del record["together"]
    assert Plan(**record).stacked == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"together": -1}, ("--together -1", "0 to train")),
        ({"together": 2, "seeds": 5}, ("--together 2", "--seeds")),
        ({"together": 2, "fixed": True}, ("--together 2", "--fixed")),
        ({"together": 2, "task": "bag-of-words"}, ("--together 2", "own training loop")),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(BadCall) as caught:
        Request(**{"task": "digits", **options}).check()
    assert all(word in str(caught.value) for word in words)


def test_a_given_number_is_not_measured():
    made = planning.make_plan(Request("digits", together=3), 1, None, 0.0)  # type: ignore[arg-type]
    assert made.together == 3
