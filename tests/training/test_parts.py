"""The rates that parts of an entry ask for, against closed forms; what is said of all parts."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steepest.cli import main
from steepest.training.full_batch import METHODS
from steepest.training.listing import listing
from steepest.training.parts import PARTS
from steepest.training.recipe import Recipe
from tests.blocks import ROOT

PAGE = (ROOT / "docs" / "entries.md").read_text(encoding="utf-8")
LENGTHS = [1, 2, 3, 4, 5, 20, 97]
SHORT = settings(max_examples=20, deadline=None)


def rates(words, steps):
    """The learning rate of each step, begun at 1."""
    entry, weight = f"torch.optim:SGD+{words}", nn.Parameter(torch.ones(2))
    hyper = Recipe.read(entry).defaults | {"lr": 1.0}
    optimizer = Recipe.read(entry).optimizer([weight], hyper)
    Recipe.read(entry).equip(optimizer, steps, hyper, 0)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2)
        optimizer.step()
    return found


def triangle(t, steps, shrink):
    half = math.ceil(steps / 8)
    turn = t // (2 * half)
    height = 1 - abs(t - (2 * turn + 1) * half) / half
    return 1 / 6 + 5 / 6 * height * shrink(t, turn)


def restarted(t, steps):
    start, period = 0, math.ceil(steps / 7)
    while t >= start + period:
        start, period = start + period, 2 * period
    return (1 + math.cos(math.pi * (t - start) / period)) / 2


def one_cycle(t, steps):
    """Two phases as cosines: up to 1 from 1/25, down to a ten-thousandth of that."""
    top = 0.3 * (steps + 1) - 1
    a, b, share = (1 / 25, 1, (t / top if top > 0 else 1)) if t <= top else (
        1, 1 / 25e4, (t - top) / (steps - top)
    )  # fmt: skip
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


def noam(t, steps):
    warm = max(1, round(0.1 * steps))
    return warm**0.5 * min((t + 1) ** -0.5, (t + 1) * warm**-1.5)


FORMS = {
    "cosine": lambda t, n: (1 + math.cos(math.pi * t / n)) / 2,
    "step": lambda t, n: 0.2 ** sum(t >= max(1, round(s * n)) for s in (0.3, 0.6, 0.8)),
    "exponential": lambda t, n: 0.01 ** (t / n),
    "polynomial": lambda t, n: 1 - t / n,
    "sgdr": restarted,
    "triangular": lambda t, n: triangle(t, n, lambda t, k: 1),
    "triangular2": lambda t, n: triangle(t, n, lambda t, k: 2.0**-k),
    "exp-range": lambda t, n: triangle(t, n, lambda t, k: 0.01 ** (t / n)),
    "one-cycle": one_cycle,
    "noam": noam,
}


def test_every_rate_has_a_form():
    assert [*FORMS] == [name for name, part in PARTS.items() if part.kind == "rate"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("steps", LENGTHS)
def test_a_rate_is_its_formula(name, steps):
    form = FORMS[name]
    assert rates(name, steps) == pytest.approx([form(t, steps) for t in range(steps)], rel=1e-9)


@pytest.mark.parametrize("name", [n for n in FORMS if n not in ("one-cycle", "noam")])
@pytest.mark.parametrize("steps", LENGTHS)
def test_a_warm_up_rises_to_the_first_rate(name, steps):
    warm, form = max(1, round(0.1 * steps)), FORMS[name]
    rest = max(1, steps - warm)
    rise = [(k + 1) / (warm + 1) * form(0, rest) for k in range(warm)]
    wanted = [*rise, *(form(t, rest) for t in range(steps - warm))]
    assert rates(f"warmup+{name}", steps) == pytest.approx(wanted, rel=1e-9)


@SHORT
@given(st.sampled_from([*FORMS]), st.integers(1, 300))
def test_no_rate_is_above_the_optimizers_own(name, steps):
    assert all(0 < rate <= 1 + 1e-12 for rate in rates(name, steps))


@SHORT
@given(st.integers(30, 500))  # in fewer steps a period rounded up leaves the last one unfinished
def test_warm_restarts_do_not_restart_as_the_run_ends(steps):
    found = rates("sgdr", steps)
    assert sum(after > before for before, after in pairwise(found)) == 2
    assert found[-1] < 0.3


def test_the_power_of_a_polynomial_is_tuned():
    weight, entry = nn.Parameter(torch.ones(2)), "torch.optim:SGD+polynomial"
    optimizer = Recipe.read(entry).optimizer([weight], {"lr": 1.0})
    Recipe.read(entry).equip(optimizer, 10, {"polynomial.power": 2.0}, 0)
    for t in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx((1 - t / 10) ** 2)
        weight.grad = torch.ones(2)
        optimizer.step()


def test_list_prints_all_in_a_hundred_columns(capsys):
    assert main(["list", "--parts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    names = [line.split()[0] for line in lines]
    assert names == ["name", *(f"+{name}" for name in PARTS), *METHODS]
    for line in lines[1:]:
        assert "..." not in line
    assert main(["list", "--parts", "--json"]) == 0
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert [*found] == names[1:]
    assert found["+noise"]["tuned"] == {"eta": [1e-4, 0.01, 1.0]}
    assert found["levenberg-marquardt"]["needs"] == "samples, residuals"


def shown(fact):
    """A row of the page."""
    tuned = ", ".join(
        f"{knob} {low:g} to {high:g} ({default:g})"
        for knob, (low, default, high) in fact["tuned"].items()
    )
    source = re.sub(r"(arXiv):([\d.]+)", r"[\1:\2](https://arxiv.org/abs/\2)", fact["source"])
    return f"| `{fact['name']}` | {fact['about']} | {tuned} | {fact['needs']} | {source} |"


def test_the_page_has_every_part_and_every_method():
    wanted = [shown(fact) for fact in listing()]
    there = [line for line in PAGE.splitlines() if re.match(r"\| `\+?[a-z]([^|]*\|){5}", line)]
    assert there == wanted, "\n".join(["docs/entries.md should have", *wanted])


def test_the_entries_of_the_page_can_race():
    commands = re.findall(r"^\s*steepest race (\S+) .*--optimizers (\S+)", PAGE, re.MULTILINE)
    assert len(commands) >= 5
    for task, names in commands:
        from steepest.race.request import Request

        Request(task, names).check()
