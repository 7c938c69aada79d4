"""Random generators of a task's file and of the modules beside it: which are found, and that each
has a stream of its own that depends on the run's seed alone.
"""

import random
import sys

import numpy as np
import pytest
import torch

from steepest import tasks
from steepest.race import trials
from steepest.race.protocol import FRESH, Trial
from steepest.tasks import seeding, user_file, user_modules


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trials, "_warm_up", lambda _: None)
    known = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - known:
        if name.startswith(("seeded_", user_file.MODULE)):
            sys.modules.pop(name)


FILE = """
import random
from collections import deque
from functools import partial
import numpy as np
import torch
from torch import nn
from torch.utils.data import random_split
MINIMIZE, STEPS = "loss", 4
MADE
def task(seed):
    BUILT
    model = nn.Linear(4, 1)
    loss = lambda m, b: m(b).square().mean()
    return model, loss, [torch.ones(2, 4)], lambda m: loss(m, torch.ones(1, 4)).item()
"""


def loaded(folder, made, built="pass"):
    (folder / "mine.py").write_text(FILE.replace("MADE", made).replace("BUILT", built))
    tasks.get("mine.py")
    return sys.modules[user_file.MODULE]


def test_no_generator_has_the_stream_of_torch_or_of_another(elsewhere):
    made = (
        "A, B = torch.Generator(), torch.Generator()\n"
        "C, D = np.random.RandomState(0), np.random.RandomState(0)\n"
        "E, F = random.Random(0), random.Random(0)"
    )
    module = loaded(elsewhere, made)
    for seed in (0, 3, 2**32 + 3):
        seeding.seed_everything(seed, module)
        torchs = [torch.rand(9, generator=g).tolist() for g in (None, module.A, module.B)]
        numpys = [g.random_sample(9).tolist() for g in (np.random, module.C, module.D)]
        pythons = [[g.random() for _ in range(9)] for g in (random, module.E, module.F)]
        for found in (torchs, numpys, pythons):
            assert len({x for drawn in found for x in drawn}) == 27
        assert torchs[0] == torch.rand(9, generator=torch.Generator().manual_seed(seed)).tolist()


def test_what_is_everybodys_has_the_seed_of_the_run(elsewhere):
    """`random_split` has torch's generator as a default; the methods of `random` have Python's."""
    module = loaded(elsewhere, "from random import shuffle\nfrom numpy.random import rand")
    assert seeding.generators_of(module) == []


HOLDS = {
    "a list of lists": "HELD = [[torch.Generator()]]",
    "a deque": "HELD = deque([random.Random(0)])",
    "a method": "HELD = np.random.default_rng(0).permutation",
    "a partial": "HELD = partial(torch.randn, generator=torch.Generator())",
    "a default": "def held(g=torch.Generator()): return g",
    "a closure": "def outer():\n    g = torch.Generator()\n    return lambda: g\nHELD = outer()",
    "slots": (
        "class Held:\n    __slots__ = ('g',)\n    def __init__(self): self.g = random.Random(0)\n"
        "HELD = Held()"
    ),
    "a module beside it": "import seeded_helper",
    "a function of a module beside it": "from seeded_helper import mix",
    "the end of a long chain": (
        "class Node:\n    def __init__(self, value, next): self.value, self.next = value, next\n"
        "HELD = random.Random(0)\nfor i in range(3000): HELD = Node(i, HELD)"
    ),
}


@pytest.mark.parametrize("how", HOLDS)
def test_where_generators_are_found(how, elsewhere):
    (elsewhere / "seeded_helper.py").write_text(
        "import numpy as np\nrng = np.random.default_rng(0)\ndef mix(): return rng.random()\n"
    )
    ((path, _),) = seeding.generators_of(loaded(elsewhere, HOLDS[how]))
    assert path


def test_what_a_file_makes_later_shifts_no_streams(elsewhere):
    """A cache that the first run fills stands before the generator that is drawn from."""
    made = "CACHE = {}\nG = torch.Generator()\nDRAWN = []"
    built = "CACHE.setdefault('d', torch.Generator()); DRAWN.append(torch.rand((), generator=G))"
    module = loaded(elsewhere, made, built)
    for _ in range(3):
        trials.run(Trial("mine.py", FRESH, "adam", 0, 1, 4, {"lr": 0.1}))
    assert len({x.item() for x in module.DRAWN}) == 1


def test_a_student_does_not_start_as_its_teacher(elsewhere):
    made = "G = torch.Generator()\nKEPT = []"
    built = "teacher = torch.rand(4, 1, generator=G); KEPT.append((teacher, torch.rand(4, 1)))"
    module = loaded(elsewhere, made, built)
    trials.run(Trial("mine.py", FRESH, "adam", 0, 1, 4, {"lr": 0.1}))
    assert not torch.equal(*module.KEPT[0])


def test_modules_of_the_users_own_and_no_others(elsewhere):
    (elsewhere / "seeded_one.py").write_text("")
    inner = elsewhere / "lib" / "site-packages" / "seeded_two"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("")
    sys.path.insert(0, str(inner.parent))
    loaded(elsewhere, "import seeded_one, seeded_two")
    assert {*user_modules.modules("mine.py")} == {"seeded_one"}
    assert {*user_modules.modules("digits", "seeded_one:Mine")} == {"seeded_one"}
    assert user_modules.modules("digits", "adam") == {}
