"""Resume is exact: 50 steps, a file, a fresh process and 50 steps end on the bits of 100 steps.

Run as a script, this file is that process: `python tests/optimizers/test_resume.py FOLDER`.
"""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import steepest
from steepest.backends import threads

BACKENDS = ("cpu", "foreach", "eager")
ROUNDINGS = (None, "stochastic", "kahan")
STEPS, THREADS, LARGE = 50, 1, 1 << 20  # small tensors: a second thread would only wait
CASES = list(itertools.product(steepest.rules, BACKENDS, ROUNDINGS))


class Mixed(nn.Module):
    """Parameters of three dtypes; the loss is never computed, gradients come from a generator."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, dtype in {"a": "float32", "b": "bfloat16", "c": "float64"}.items():
            start = torch.randn(3, 2, generator=generator).to(getattr(torch, dtype))
            self.register_parameter(name, nn.Parameter(start))


class Run:
    """Everything that a training run has to save, one combination of options."""

    def __init__(self, rule, backend, rounding):
        self.model = Mixed()
        self.optimizer = steepest.optimizer(
            rule, self.model.named_parameters(), backend=backend, rounding=rounding
        )
        schedulers = torch.optim.lr_scheduler
        self.scheduler = schedulers.CosineAnnealingWarmRestarts(self.optimizer, 17, 2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
        self.generator = torch.Generator().manual_seed(2)

    def steps(self, count):
        for _ in range(count):
            scale = self.scaler.scale(torch.ones(()))
            for p in self.model.parameters():
                g = torch.randn(p.shape, generator=self.generator)
                if torch.rand((), generator=self.generator) < 0.02:  # a step that the scaler skips
                    g[0, 0] = torch.inf
                p.grad = (g * scale).to(p.dtype)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])


def child(folder):
    """Go on with every run of the file, and write where it ends."""
    torch.set_num_threads(THREADS)
    ends = []
    for case, state in zip(CASES, torch.load(folder / "half.pt", weights_only=True), strict=True):
        run = Run(*case)
        run.load(state)
        run.steps(STEPS)
        ends.append(run.state())
    torch.save(ends, folder / "end.pt")


def leaves(tree, path=()):
    """Every value of a nested state, with its path."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def bits(value):
    """What can be compared: dtype and bytes of a tensor, so that a nan equals itself."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    return repr(value)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """(at half, uninterrupted, resumed), each a list in the order of CASES."""
    folder = tmp_path_factory.mktemp("resume")
    torch.set_num_threads(THREADS)
    half, whole = [], []
    for case in CASES:
        run = Run(*case)
        run.steps(STEPS)
        half.append(copy.deepcopy(run.state()))
        run.steps(STEPS)
        whole.append(run.state())
    torch.save(half, folder / "half.pt")
    source = Path(steepest.__file__).parent.parent
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return half, whole, torch.load(folder / "end.pt", weights_only=True)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda k: "-".join(map(str, CASES[k])))
def test_a_resumed_run_ends_on_the_same_bits(ends, case):
    half, whole, resumed = (dict(leaves(part[case])) for part in ends)
    assert whole.keys() == resumed.keys()
    for path, value in whole.items():
        assert bits(value) == bits(resumed[path]), path
    assert all(bits(whole["model", k]) != bits(half["model", k]) for k in ("a", "c"))
    counts = [v for p, v in whole.items() if p[-1] == "step"]
    assert all(STEPS < float(v) < 2 * STEPS for v in counts)


# matrices are stepped by torch's own operations
@pytest.mark.parametrize("rule", [n for n, r in steepest.rules.items() if not r.trace().matrix])
def test_the_loops_bits_do_not_depend_on_the_number_of_threads(rule, monkeypatch):
    used, original = [], threads.run
    monkeypatch.setattr(threads, "run", lambda *a: (used.append(a[2]), original(*a)))
    generator, ends = torch.Generator().manual_seed(4), []
    start = torch.randn(3 * LARGE + 17, generator=generator)
    g = torch.randn(start.shape, generator=generator)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        p = nn.Parameter(start.clone())
        p.grad = g
        made = steepest.optimizer(rule, [p], backend="cpu")
        made.step()
        made.step()
        ends.append([p.detach(), *(v for _, v in sorted(made.state[p].items()))])
    program = steepest.rules[rule].trace()
    passes = 2 if program.reductions else 1
    assert used == [n for n in (2, 3) for _ in range(2 * passes)]
    for other in ends[1:]:
        assert all(map(torch.equal, ends[0], other))


if __name__ == "__main__":
    child(Path(sys.argv[1]))
