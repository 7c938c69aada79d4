"""What makes runs of one seed comparable: hashes of batches, draws of an optimizer, states that go
from run to run, workers of a DataLoader, and a file that is edited while it is raced.
"""

import random
import re
import subprocess
import sys
import threading
import time
from array import array
from collections import UserDict, deque
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from steepest import tasks
from steepest.errors import BadCall
from steepest.processes import Pool
from steepest.race import driver, planning, trials
from steepest.race.notes import caveats
from steepest.race.protocol import FRESH, Trial
from steepest.race.store import Store
from steepest.tasks import seeding
from steepest.training.pairing import Seen
from steepest.training.randomness import OwnRandomness
from steepest.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("elsewhere")


def seen(*batches):
    found = Seen()
    for batch in batches:
        found.add(batch)
    return found.so_far()


X = torch.arange(12.0).reshape(3, 4)
DIFFERENT = [
    X, X + 0, X.T, X.reshape(-1), X.double(), X.bfloat16(), X[:2], X.to_sparse(), X > 3,
    X.numpy().astype("f2"), (X, X), [X, X[:1]], {"x": X}, {"y": X}, UserDict(x=X, y=X), "text", 3,
    3.5, None, torch.tensor(2.0), torch.zeros(0), np.array(["a", "b"]), np.datetime64("2026-01-01"),
    SimpleNamespace(z=X), SimpleNamespace(z=X + 1), torch.complex(X, X),
    torch.complex(X, -X).conj(),
]  # fmt: skip
"""All but the second and the last, which have the values of one before."""


def test_a_hash_knows_values_types_and_shapes():
    found = [seen(batch) for batch in DIFFERENT]
    assert found[1] == found[0]
    assert found[-1] == found[-2]
    others = [h for i, h in enumerate(found) if i not in (1, len(found) - 1)]
    assert len({*others}) == len(others)


def test_a_hash_runs_on_and_knows_the_order():
    assert seen(X, X + 1) != seen(X + 1, X)
    assert seen(X, X + 1) != seen(X)
    assert seen(object()) == seen(object())  # no address is in it
    changed = X.clone()
    changed[2, 3] = 11.000001
    assert seen(changed) != seen(X)


@dataclass(slots=True)
class Slots:
    x: object


class Plain:
    def __init__(self, x):
        self.x = x


class Knows:
    """As a batch of torchtext does."""

    def __init__(self, x, dataset):
        self.x, self.dataset = x, dataset


SPARSE = torch.tensor([[0, 3.0], [4, 0]])
INSIDE = {
    "slots": Slots,
    "an object": Plain,
    "objects in objects": lambda x: Plain(Plain(Plain(Plain(Plain(Plain(Plain(Plain(x)))))))),
    "lists in lists": lambda x: [[[[[[[[x]]]]]]]],
    "a deque": lambda x: deque([x]),
    "a set": lambda x: {1, int(x.sum())},
    "bytes": lambda x: bytes(x.int().tolist()[0]),
    "bytearray": lambda x: bytearray(x.int().tolist()[0]),
    "memoryview": lambda x: memoryview(bytes(x.int().tolist()[0]))[::2],
    "array": lambda x: array("f", x[0].tolist()),
    "range": lambda x: range(int(x.sum())),
    "a date": lambda x: date(2000 + int(x.sum()), 1, 1),
    "Decimal": lambda x: Decimal(int(x.sum())),
    "a masked array": lambda x: np.ma.masked_array([1, 2], [0, int(x[0, 0])]),
    "an array of objects": lambda x: np.array([x, None], dtype=object),
    "one object in an array": lambda x: np.array(str(x), dtype=object),
    "a structure with an object": lambda x: np.array([(1, str(x))], [("a", int), ("b", object)]),
    "a nested tensor": lambda x: torch.nested.nested_tensor([x, x[:1]]),
    "a jagged tensor": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
    "coo": lambda x: (x[:2, :2] * SPARSE).to_sparse(),
    "coo, not coalesced": lambda x: torch.sparse_coo_tensor([[0, 0]], x[0, :2], (3,)),
    "csr": lambda x: (x[:2, :2] * SPARSE).to_sparse_csr(),
    "csc": lambda x: (x[:2, :2] * SPARSE).to_sparse_csc(),
    "dates in an array": lambda x: x[0].long().numpy().astype("M8[D]"),
    "a data class in a dict in a list": lambda x: [{"x": Slots(x)}],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", INSIDE)
def test_a_batch_is_looked_into(how):
    a, again, b = (Seen() for _ in range(3))
    with torch.no_grad():
        for found, x in ((a, X), (again, X.clone()), (b, X + 1)):
            found.add(INSIDE[how](x))
            assert found.unread == ""
    assert a.so_far() == again.so_far() != b.so_far()


class Broken:
    def __reduce_ex__(self, protocol):
        raise RuntimeError


@pytest.mark.parametrize(
    "batch",
    [
        (i for i in range(3)), Broken(), {Broken(): 1}, threading.Lock(), nn.Linear(1, 1),
        torch.zeros(3, device="meta"), [[Plain(Broken())]],
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_and_ends_nothing(batch):
    found = Seen()
    found.add((X, batch))
    assert found.unread.endswith("in a batch cannot be read")


def test_a_batch_that_knows_its_dataset_is_looked_at_so_far_and_no_further():
    class Counted(list):
        given = 0

        def __iter__(self):
            for each in super().__iter__():
                Counted.given += 1
                yield each

    dataset = Plain(Counted((X, i) for i in range(30_000)))
    a, b = Seen(), Seen()
    a.add(Knows(X, dataset))
    assert a.unread == "more than 2,000 things in a batch"
    assert Counted.given < 5000
    b.add(Knows(X + 1, dataset))  # what is near is known all the same
    assert a.so_far() != b.so_far()
    round_about = []
    round_about.append(round_about)
    a.add(round_about)


def test_the_order_of_keys_is_not_of_the_batch():
    assert seen({"x": X, "y": 1}) == seen({"y": 1, "x": X}) != seen({"x": 1, "y": X})


def test_a_sparse_batch_is_never_made_dense():
    wide = torch.sparse_coo_tensor([[0], [5]], [1.0], (2**31, 2**31))
    assert seen(wide) == seen(wide.clone()) != seen(wide * 2)


class Drawing(torch.optim.SGD):
    """Draws from all that there is to draw from, and is none of ours or torch's."""

    def step(self, closure=None):
        self.drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        if closure:
            self.inside = closure()
        return super().step()


def test_an_optimizer_draws_from_states_of_its_own():
    made = Drawing([nn.Parameter(torch.ones(2))], lr=0.1)
    apart, all_drawn = OwnRandomness(made, 5), []
    draw = lambda: [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: E731
    seeding.seed_everything(3, sys)
    expected = [draw() for _ in range(6)]
    seeding.seed_everything(3, sys)
    found = [draw()]
    for _ in range(2):
        with apart.active():
            made.step()
        all_drawn.append(made.drawn)
        found.append(draw())

    def closure():
        with apart.active():
            return draw()

    with apart.active():
        made.step(closure)
    all_drawn.append(made.drawn)
    found += [made.inside, draw()]
    assert found == expected[:5]
    flat = [x for drawn in all_drawn for x in drawn]
    assert len({*flat}) == 9  # it goes on from step to step
    assert not {*flat} & {x for drawn in expected for x in drawn}


LOADED = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset
MINIMIZE, STEPS, EVERY = "loss", 9, 3
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
DATA = TensorDataset(X, Y)
def own():
    return torch.Generator().manual_seed(0)
MADE
def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()
def evaluate(model, split):
    return loss(model, (X, Y)).item()
def task(seed):
    return nn.Linear(3, 1), loss, BATCHES, evaluate
"""
WORKS = {
    "a generator of torch": "BATCHES = DataLoader(DATA, 8, shuffle=True, generator=own())",
    "a sampler's": "BATCHES = DataLoader(DATA, 8, sampler=RandomSampler(DATA, generator=own()))",
    "in a dict": (
        "PARTS = {'train': [DataLoader(DATA, 8, shuffle=True, generator=own())]}\n"
        "BATCHES = PARTS['train'][0]"
    ),
    "numpy's": (
        "RNG = np.random.default_rng(0)\n"
        "class Batches:\n    def __iter__(self):\n"
        "        for _ in range(5):\n            i = RNG.integers(40, size=8)\n"
        "            yield X[i], Y[i]\nBATCHES = Batches()"
    ),
    "an old one of numpy's, in an object": (
        "class Batches:\n    def __init__(self):\n        self.rng = np.random.RandomState(0)\n"
        "    def __iter__(self):\n"
        "        for _ in range(5):\n            i = self.rng.randint(40, size=8)\n"
        "            yield X[i], Y[i]\nBATCHES = Batches()"
    ),
    "of random, in a data set": (
        "class Noisy(Dataset):\n    rng = random.Random(0)\n"
        "    def __len__(self): return 40\n"
        "    def __getitem__(self, i): return X[i] + self.rng.random(), Y[i]\n"
        "BATCHES = DataLoader(Noisy(), 8, shuffle=True)"
    ),
}
CAUGHT = {
    "an iterator": "import itertools\nBATCHES = itertools.cycle(DataLoader(DATA, 8, shuffle=True))",
    "a list that is shuffled in place": (
        "LIST = list(DataLoader(DATA, 8))\nclass Batches:\n    def __iter__(self):\n"
        "        random.shuffle(LIST)\n        yield from LIST\nBATCHES = Batches()"
    ),
    "a count": (
        "COUNT = [0]\nclass Batches:\n    def __iter__(self):\n        COUNT[0] += 1\n"
        "        yield X[COUNT[0] % 30:][:8], Y[COUNT[0] % 30:][:8]\nBATCHES = Batches()"
    ),
}  # fmt: skip


def raced(folder, source, jobs=1, **changes):
    (folder / "mine.py").write_text(source)
    asked = {"task": "mine.py", "optimizers": "adamw,momentum,eadam", "trials": 1, "seeds": 2}
    return driver.race(driver.Request(**asked | changes), folder / f"out{jobs}", jobs=jobs)[0]


def runs(folder):
    return {t.key: (r.validation, r.test, r.batches) for t, r in Store(folder).results()}


@pytest.mark.parametrize("made", WORKS)
def test_no_generator_of_the_file_goes_on_from_run_to_run(made, elsewhere):
    (elsewhere / "mine.py").write_text(LOADED.replace("MADE", WORKS[made]))

    def run(seed, entry="momentum"):
        return trials.run(Trial("mine.py", FRESH, entry, 0, seed, 9, {"lr": 0.05}))

    first, other, again = run(1), run(2), run(1, "adam")
    assert len(first.batches) == 3
    assert again.batches == first.batches != other.batches
    assert run(1).validation == first.validation


@pytest.mark.parametrize("made", CAUGHT)
def test_what_else_goes_on_from_run_to_run_is_caught(made, elsewhere):
    with pytest.raises(BadCall, match=r"the batches of \S+ \(seed \d+\) up to step \d+ differ f"):
        raced(elsewhere, LOADED.replace("MADE", CAUGHT[made]))


@pytest.mark.slow
def test_the_numbers_are_the_same_with_any_number_of_jobs(elsewhere, monkeypatch):
    monkeypatch.setattr(driver, "Pool", Pool)
    source = LOADED.replace("MADE", WORKS["a generator of torch"])
    one, two = raced(elsewhere, source, 1), raced(elsewhere, source, 2)
    assert runs(elsewhere / "out1") == runs(elsewhere / "out2")
    assert one["verdict"] == two["verdict"]
    assert one["batches_checked"] == ["adamw", "eadam", "momentum"]


def test_draws_of_a_class_shift_no_data(elsewhere):
    (elsewhere / "stranger.py").write_text(
        "import torch, random, numpy as np\nclass Langevin(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.01):\n        super().__init__(params, lr)\n"
        "        torch.rand(3), random.random(), np.random.rand()\n"
        "    def step(self, closure=None):\n"
        "        torch.randn(7), random.random(), np.random.rand()\n        super().step(closure)\n"
    )
    # the order is drawn from torch's own state, which nothing but the seed sets
    source = LOADED.replace("MADE", "BATCHES = DataLoader(DATA, 8, shuffle=True)")
    summary = raced(elsewhere, source, optimizers="stranger:Langevin,torch.optim:SGD")
    assert summary["complete"]
    assert "stranger:Langevin" in summary["batches_checked"]


def test_who_has_batches_of_their_own_is_not_compared(elsewhere):
    source = LOADED.replace("MADE", "BATCHES = DataLoader(DATA, 8, shuffle=True)")
    names = "adamw,momentum+full-batch,momentum+curriculum,newton-cg,adam+noise+clip"
    summary = raced(elsewhere, source, optimizers=names)
    assert summary["batches_checked"] == ["adam+noise+clip", "adamw"]
    assert all(
        Recipe.read(name).same_batches == (name in summary["batches_checked"])
        for name in summary["entries"]
    )


def test_a_run_that_ends_early_is_compared_as_far_as_it_goes(elsewhere):
    source = LOADED.replace("MADE", "BATCHES = DataLoader(DATA, 8, shuffle=True)")
    wild = "\nimport steepest\n@steepest.rule\ndef wild(p, g, *, lr=1e20): return p - lr * g,\n"
    summary = raced(elsewhere, source + wild, optimizers="wild,momentum+early-stopping", steps=30)
    assert summary["entries"]["wild"]["diverged"]["fresh"] == 2


# --- batches that are not the same, though nothing goes on from run to run

MINED = (
    "MODELS = []\nclass Batches:\n    def __iter__(self):\n"
    "        g = torch.Generator().manual_seed(0)\n        while True:\n"
    "            i = torch.randint(40, (16,), generator=g)\n"
    "            with torch.no_grad(): error = (MODELS[-1](X[i]) - Y[i]).abs().squeeze()\n"
    "            hard = error.topk(4).indices\n            yield X[i][hard], Y[i][hard]\n"
    "BATCHES = Batches()"
)
TIMED = (
    "import time\ndef collate(rows):\n    x, y = zip(*rows)\n"
    "    return Batch(torch.stack(x), torch.stack(y), time.perf_counter())\n"
    "from collections import namedtuple\nBatch = namedtuple('Batch', 'x y at')\n"
    "BATCHES = DataLoader(DATA, 8, shuffle=True, collate_fn=collate)"
)


@pytest.mark.parametrize(("made", "said"), [(MINED, ""), (TIMED, r" \(batch\[2\] already")])
def test_a_race_is_not_lost_by_batches_that_differ(made, said, elsewhere):
    source = LOADED.replace("MADE", made).replace(
        "return nn.Linear(3, 1),", "MODELS.append(nn.Linear(3, 1)); return MODELS[-1],"
    )
    source = source.replace("MADE", made) if "MODELS" in made else LOADED.replace("MADE", made)
    summary = raced(elsewhere, source, optimizers="adamw,momentum", trials=5, seeds=5)
    assert summary["complete"]
    assert summary["batches_checked"] == ["adamw"]
    line = next(line for line in caveats(summary) if line.startswith("Differences"))
    begin = r"momentum is not paired: its batches up to step \d+ differ from those of adamw"
    assert re.search(begin + said, line)


def test_draws_that_differ_are_told(elsewhere):
    """How much the loss draws hangs on the model: dropout by its own rate, rejection, a policy."""
    source = LOADED.replace("MADE", "BATCHES = [(X, Y)]").replace(
        "    return (model(batch[0])", "    torch.rand(int(1e6 * model.bias.item()) % 97)\n"
        "    return (model(batch[0])", 1,
    )  # fmt: skip
    summary = raced(elsewhere, source, optimizers="adamw,momentum")
    assert summary["batches_checked"] == ["adamw"]
    assert summary["batches_unpaired"] == {
        "momentum": "random draws up to step 3 differ from those of adamw"
    }


def test_a_batch_that_cannot_be_read_is_unchecked(elsewhere):
    made = "BATCHES = [(X, Y, (i for i in range(3)))]"
    summary = raced(elsewhere, LOADED.replace("MADE", made))
    assert {*summary["batches_unchecked"].values()} == {"a generator in a batch cannot be read"}
    assert summary["batches_checked"] == []


def test_who_ends_at_once_is_not_said_to_choose_batches(elsewhere):
    wild = "\nimport steepest\n@steepest.rule\ndef wild(p, g, *, lr=1e38): return p - lr * g,\n"
    source = LOADED.replace("MADE", "BATCHES = [(X, Y)]") + wild
    summary = raced(elsewhere, source, optimizers="adamw,wild")
    assert summary["batches_unchecked"] == {"wild": "ended before it could be checked"}


# --- a DataLoader's workers


def test_workers_of_a_loader_start_as_they_do_outside_of_a_race():
    said = "__import__('multiprocessing').get_start_method()"
    import multiprocessing

    with Pool(1, eval) as pool:
        ((_, found),) = pool.map([said])
    assert found == multiprocessing.get_context().get_start_method()


# --- a file that is edited while it is raced


@pytest.mark.slow
def test_what_runs_is_the_source_that_the_race_began_with(elsewhere):
    """Edited after the first runs: later workers would read it anew, and so would a resumed one."""
    source = (
        "import pathlib, torch\nfrom torch import nn\nMINIMIZE, STEPS = 'loss', 2\nOFFSET = 0.0\n"
        "def train(make_optimizer, report, seed):\n    model = nn.Linear(2, 1)\n"
        "    made = make_optimizer(model)\n    for _ in range(STEPS):\n        made.zero_grad()\n"
        "        model(torch.ones(2)).square().mean().backward()\n        made.step()\n"
        "    report(STEPS, validation=1 + OFFSET, test=1 + OFFSET)\n"
        "    pathlib.Path(str(seed)).touch()\n"
    )
    file = elsewhere / "mine.py"
    file.write_text(source)

    def edit():
        while len([*elsewhere.glob("[0-9]*")]) < 3:
            time.sleep(0.01)
        file.write_text(source.replace("OFFSET = 0.0", "OFFSET = 1000.0"))

    editor = threading.Thread(target=edit)
    editor.start()
    words = "race mine.py --optimizers adamw,momentum,eadam --trials 1 --seeds 5 --jobs 2 --out out"
    done = subprocess.run(
        [sys.executable, "-m", "steepest", *words.split()], capture_output=True, text=True
    )
    editor.join()
    assert done.returncode == 0, done.stderr
    assert "mine.py was changed during the race" in done.stderr
    store = Store(elsewhere / "out")
    assert {r.validation[-1] for _, r in store.results()} == {1.0}
    assert store.provenance["task_sha256"] != tasks.get("mine.py").source_hash


def test_a_file_is_what_it_was_when_the_work_was_given(elsewhere):
    file = elsewhere / "mine.py"
    source = LOADED.replace("MADE", "BATCHES = DataLoader(DATA, 8)")
    file.write_text(source)
    work = trials.runner("mine.py")
    file.write_text("raise SystemExit")
    assert not work(Trial("mine.py", FRESH, "adam", 0, 1, 9, {"lr": 0.1})).diverged
    with pytest.raises(BadCall, match=r"sys\.exit"):
        tasks.get("mine.py")
    file.unlink()
    assert not work(Trial("mine.py", FRESH, "adam", 1, 1, 9, {"lr": 0.1})).diverged


def test_an_error_shows_the_lines_that_ran(elsewhere):
    file = elsewhere / "mine.py"
    source = LOADED.replace("MADE", "BATCHES = DataLoader(DATA, 8)")
    file.write_text(source.replace("return nn.Linear(3, 1)", "assert seed < 0; return nn"))
    work = trials.runner("mine.py")
    file.write_text("\n\n\n" + file.read_text().replace("seed < 0", "seed > 9"))
    with pytest.raises(BadCall) as found:
        work(Trial("mine.py", FRESH, "adam", 0, 1, 9, {"lr": 0.1}))
    assert "assert seed < 0" in found.value.trace


def test_a_module_beside_the_file_stays_what_it_was(elsewhere):
    """In a process of its own, as a worker that starts late: here it is imported already."""
    for name in ("helper", "entry_of"):
        (elsewhere / f"mod_{name}.py").write_text(
            "import torch\nWORD = 1\nclass Mine(torch.optim.SGD):\n"
            "    def __init__(self, params, lr=0.1): super().__init__(params, lr)\n"
        )
    made = "import mod_helper\nBATCHES = DataLoader(DATA, 8)"
    (elsewhere / "mine.py").write_text(LOADED.replace("MADE", made))
    request = driver.Request("mine.py", "mod_entry_of:Mine,adam")
    request.check()
    work = trials.runner("mine.py", request.optimizers)
    assert {*work.keywords["imported"]} == {"mod_helper", "mod_entry_of"}
    assert {*driver.provenance(request)["modules_sha256"]} == {"mod_helper", "mod_entry_of"}
    run = Trial("mine.py", FRESH, "mod_entry_of:Mine", 0, 1, 9, {"lr": 0.1})
    with Pool(1, work) as pool:
        ((_, found),) = pool.map([run])
        assert not found.diverged
        (elsewhere / "mod_helper.py").write_text("WORD = 2\n")
        ((_, found),) = pool.map([run])  # imported before
        assert not found.diverged
    with Pool(1, work) as pool, pytest.raises(BadCall, match=r"module 'mod_helper'.*was changed"):
        list(pool.map([run]))
    with_store = SimpleNamespace(
        plan=planning.make_plan(request, 1, None, 0.0), provenance=driver.provenance(request),
        task=tasks.get("mine.py"),
    )  # fmt: skip
    driver.check_same_race(request, with_store, "--resume", "out")
    with_store.provenance["modules_sha256"]["mod_helper"] = "other"
    with pytest.raises(BadCall, match="--resume: module 'mod_helper' has changed since"):
        driver.check_same_race(request, with_store, "--resume", "out")
    for name in ("mod_helper", "mod_entry_of"):
        sys.modules.pop(name)
