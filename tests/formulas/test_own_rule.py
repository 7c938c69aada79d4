"""A rule of the user's own: the README's example end to end, and the likeliest mistakes."""

import io
import json
import math
import subprocess
import sys
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest import check
from steepest.classes import class_of
from steepest.ops import log, sqrt, where
from tests.docs.test_readme import BLOCKS

EXAMPLE = next(block for block in BLOCKS if "@steepest.rule" in block)
RULE, USE = EXAMPLE.split("\n\n\nmodel = ")
SECONDS = 240

TASK = """
from torch import nn
MINIMIZE, STEPS = "error", 8
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def train(make_optimizer, report, seed):
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = (model(DATA) - DATA.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        if step % 2 == 0:
            report(step, validation=loss.item(), test=loss.item())
"""


@pytest.fixture
def averaged_sign():
    names = {"__name__": "readme"}
    exec(compile(RULE, "README.md", "exec"), names)
    return names["averaged_sign"]


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "steepest", *arguments],
        cwd=folder, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip


# the example


def test_it_is_a_rule_in_four_lines_with_a_class_of_its_own(averaged_sign):
    lines = RULE[RULE.index("@steepest.rule") :].strip().splitlines()
    assert len([line for line in lines if '"""' not in line]) == 4
    assert steepest.rules["averaged_sign"] is averaged_sign
    kind = class_of(averaged_sign)
    assert kind.__name__ == "AveragedSign"
    assert issubclass(kind, torch.optim.Optimizer)
    assert kind.__doc__.startswith("Step by the sign of the averaged gradient.")
    shown = signature(kind).parameters
    assert {"lr": 1e-3, "beta": 0.9, "weight_decay": 0.0}.items() <= {
        name: p.default for name, p in shown.items()
    }.items()
    params = [nn.Parameter(torch.ones(2))]
    assert type(steepest.optimizer("averaged_sign", params)) is kind
    assert type(steepest.optimizer(averaged_sign, params)) is kind
    with pytest.raises(TypeError, match=r"AveragedSign has no argument 'bet'; did you mean 'beta'"):
        steepest.optimizer(averaged_sign, params, bet=0.5)
    with pytest.raises(ValueError, match=r"AveragedSign: lr=-1\.0 was given, expected a number in"):
        steepest.optimizer(averaged_sign, params, lr=-1.0)


@pytest.mark.parametrize("backend", [None, "cpu", "foreach", "eager"])
def test_it_steps_by_the_fused_loop_as_the_formula_says(averaged_sign, backend):
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    by_hand, m = p.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = steepest.optimizer(
        averaged_sign, [p], lr=0.1, beta=0.8, weight_decay=0.3, backend=backend
    )
    for _ in range(30):
        p.grad = g = torch.randn(5, dtype=torch.float64)
        optimizer.step()
        m = 0.8 * m + 0.2 * g
        by_hand = by_hand * (1 - 0.1 * 0.3) - 0.1 * m / (m.abs() + 1e-12)
    assert torch.allclose(p.detach(), by_hand, rtol=1e-12, atol=1e-12)
    assert torch.allclose(optimizer.state[p]["m"], m, rtol=1e-12, atol=1e-12)
    assert optimizer.stepped_by() == {backend or "cpu"}


def test_its_checkpoint_resumes_to_the_bit(averaged_sign):
    def begin():
        torch.manual_seed(1)
        model = nn.Linear(4, 3)
        return model, steepest.optimizer(averaged_sign, model, lr=0.05)

    def steps(model, optimizer, which):
        for t in which:
            for p in model.parameters():
                p.grad = torch.sin(t * p.detach() + t)
            optimizer.step()

    whole = begin()
    steps(*whole, range(50))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    file.seek(0)
    again = begin()
    for part, saved in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
    for each in (whole, again):
        steps(*each, range(50, 100))
    assert torch.equal(whole[0].weight, again[0].weight)
    assert torch.equal(whole[0].bias, again[0].bias)
    with pytest.raises(ValueError, match=r"AdamW: the checkpoint .* saved by another optimizer"):
        steepest.AdamW(again[0].parameters()).load_state_dict(whole[1].state_dict())


@pytest.mark.slow
def test_it_enters_a_race_from_the_tasks_file(tmp_path):
    (tmp_path / "mine.py").write_text(RULE + TASK)
    done = run(
        "race", "mine.py", "--optimizers", "averaged_sign,averaged_sign+cosine", "--trials", "2",
        "--seeds", "2", "--jobs", "1", "--out", "out", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    entry = summary["entries"]["averaged_sign"]
    assert "averaged_sign+cosine" in summary["entries"]
    assert all(math.isfinite(value) for value in entry["test"])
    assert all(trial["hyperparameters"].keys() == {"lr"} for trial in entry["tuning"])


def test_the_doctor_examines_it(averaged_sign):
    found = {f.name: f for f in check.examine(averaged_sign)}
    failed = {name: f.detail for name, f in found.items() if f.outcome == "fail"}
    assert not failed
    assert sum(f.outcome == "pass" for f in found.values()) > 90
    assert found["resume-float32"].outcome == found["direction"].outcome == "pass"


def test_the_command_examines_it(tmp_path):
    (tmp_path / "mine.py").write_text(RULE)
    done = run("check", "mine:averaged_sign", "--only", "resume", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AveragedSign" in done.stdout + done.stderr or "averaged_sign" in done.stdout


# mistakes


def forgets_to_return_a_state(p, g, m, v, *, lr=1e-3):
    m, v = m + g, v + g * g
    return p - lr * m / v, m


def returns_states_in_another_order(p, g, m, v, *, lr=1e-3):
    m, v = 0.9 * m + g, 0.9 * v + g * g
    return p - lr * m, v, m


def returns_a_state_before_the_parameter(p, g, m, *, lr=1e-3):
    m = 0.9 * m + g
    return m, p - lr * m


def returns_the_update_instead_of_the_parameter(p, g, m, *, lr=1e-3):
    m = 0.9 * m + g
    return lr * m, m


def returns_no_parameter(p, g, m, *, lr=1e-3):
    return 0.9 * m + g


def returns_nothing(p, g, m, *, lr=1e-3):
    m = 0.9 * m + g
    p = p - lr * m


def returns_a_list(p, g, m, *, lr=1e-3):
    return [p - lr * m, m + g]


def asks_if_of_the_step(p, g, *, t, lr=1e-3):
    if t > 10:
        lr = lr / 2
    return p - lr * g


def asks_if_of_an_element(p, g, *, lr=1e-3):
    return p - lr * g if g > 0 else p


def takes_pythons_max(p, g, *, lr=1e-3):
    return p - lr * max(g, 0.0)


def chooses_by_element(p, g, *, lr=1e-3):
    return p - lr * where(g > 0, 1, 2)


def calls_math(p, g, v, *, lr=1e-3):
    v = v + g * g
    return p - lr * g / math.sqrt(v), v


def calls_numpy(p, g, v, *, lr=1e-3):
    v = v + g * g
    return p - lr * g / np.sqrt(v), v


def has_a_numpy_constant(p, g, *, lr=1e-3):
    return p - lr * np.float32(0.5) * g


def calls_torch(p, g, v, *, lr=1e-3):
    v = v + g * g
    return p - lr * g / torch.sqrt(v), v


def makes_a_tensor(p, g, *, lr=1e-3):
    return p - lr * (g + torch.zeros_like(p))


def has_a_tensor_constant(p, g, *, lr=1e-3):
    return p - lr * g * torch.tensor(2.0)


def calls_a_method(p, g, v, *, lr=1e-3):
    v = v + g * g
    return p - lr * g / v.sqrt(), v


def writes_in_place(p, g, m, *, lr=1e-3):
    m.mul_(0.9).add_(g)
    return p - lr * m, m


def asks_for_the_shape(p, g, *, lr=1e-3):
    return p - lr * g / p.shape[0]


def takes_an_element(p, g, *, lr=1e-3):
    return p - lr * g[0]


def takes_a_remainder(p, g, *, t, lr=1e-3):
    return p - lr * (t % 2) * g


def makes_a_float_of_a_tensor(p, g, *, lr=1e-3):
    return p - lr * float(g)


def starts_a_state_by_default(p, g, m=0, *, t, lr=1e-3):
    return p - lr * m, m + g


def has_a_scalar_left_of_the_star(p, g, m, lr=1e-3):
    m = 0.9 * m + g
    return p - lr * m, m


def has_no_star(p, g, m, lr):
    m = 0.9 * m + g
    return p - lr * m, m


def has_t_left_of_the_star(p, g, t, *, lr=1e-3):
    return p - lr * g / t, t


def has_a_scalar_without_default(p, g, *, lr):
    return p - lr * g


def has_a_tensor_by_default(p, g, *, lr=torch.tensor(0.1)):  # noqa: B008
    return p - lr * g


def has_a_pair_by_default(p, g, m, *, lr=1e-3, betas=(0.9, 0.999)):
    m = betas[0] * m + g
    return p - lr * m, m


def takes_a_word_of_every_class(p, g, *, lr=1e-3, weight_decay=0.1):
    return p - lr * (g + weight_decay * p)


def calls_a_state_step(p, g, step, *, lr=1e-3):
    return p - lr * g / sqrt(step + g * g), step + g * g


def forgets_the_gradient(p, g, m, *, lr=1e-3):
    m = 0.9 * m + p
    return p - lr * m, m


def adamw(p, g, *, lr=1e-3):
    return p - lr * g


def AdamW(p, g, *, lr=1e-3):  # noqa: N802
    return p - lr * g


WORDS = r"sqrt, log, abs, sign, maximum, minimum and where from steepest\.ops"
CHOICE = r"where\(condition, a, b\).*maximum, minimum or sign"
ORDER = "does not depend on the old one; check the order of the outputs"
NUMBER = r"give a number.*carried\(start\) or captured\(name\)"
MISTAKES = {
    forgets_to_return_a_state: r"it returns 2 values, expected 3; return the new \(p, m, v\)",
    returns_states_in_another_order: f"the new 'm' {ORDER}",
    returns_a_state_before_the_parameter: f"the new 'p' {ORDER}",
    returns_the_update_instead_of_the_parameter: f"the new 'p' {ORDER}",
    returns_no_parameter: r"it returns 1 values, expected 2; return the new \(p, m\)",
    returns_nothing: "it returns nothing; end it with `return p, m`",
    returns_a_list: "it returns a list; end it with `return p, m`",
    asks_if_of_the_step: f"`if`.* of a traced value.*{CHOICE}",
    asks_if_of_an_element: f"a comparison of a traced value.*{CHOICE}",
    takes_pythons_max: f"a comparison of a traced value.*{CHOICE}",
    chooses_by_element: f"a comparison of a traced value.*{CHOICE}",
    calls_math: f"a function of math of a traced value.*{WORDS}",
    calls_numpy: f"numpy.sqrt of a traced value.*{WORDS}",
    has_a_numpy_constant: r"numpy.multiply of a traced value.*with \+ - \* / \*\*",
    calls_torch: rf"torch's sqrt\(\) of a traced value; .*{WORDS}",
    makes_a_tensor: r"torch's zeros_like\(\) of a traced value; write",
    has_a_tensor_constant: "'traced value' and 'Tensor'; write",
    calls_a_method: rf"\.sqrt of a traced value, which has no methods.*{WORDS}",
    writes_in_place: r"\.mul_ of a traced value, .* no memory; .*\(m = beta \* m \+ g\)",
    asks_for_the_shape: r"\.shape of a traced value",
    takes_an_element: "'traced value' object is not subscriptable; write",
    takes_a_remainder: "%: 'traced value' and 'int'; write",
    makes_a_float_of_a_tensor: rf"float\(\) .*of a traced value.*{WORDS}",
    starts_a_state_by_default: r"tensor 'm' has a default; .*write where\(t > 1, m, start\)",
    has_a_scalar_left_of_the_star: r"tensor 'lr' has a default; put a scalar right of `\*`",
    has_no_star: r"expected 3; return the new \(p, m, lr\) .*left of `\*` is a tensor",
    has_t_left_of_the_star: r"t is left of `\*`; put it to the right",
    has_a_scalar_without_default: f"scalar 'lr' has no default; {NUMBER}",
    has_a_tensor_by_default: rf"scalar 'lr' has the default tensor\(0\.1000\); {NUMBER}",
    has_a_pair_by_default: r"'betas' has the default \(0\.9, 0\.999\); .*beta1 and beta2",
    takes_a_word_of_every_class: "a scalar is called 'weight_decay'; rename it",
    calls_a_state_step: r"the keys \['step'\]; give each state another key, but not 'step'",
    forgets_the_gradient: "the gradient 'g' is never read; compute the step from it",
    adamw: "a rule of that name exists; give the function another name",
    AdamW: r"a rule of that name exists \(adamw\); give the function another name",
}


@pytest.mark.parametrize("function", MISTAKES, ids=lambda f: f.__name__)
def test_a_mistake_gets_one_sentence_with_rule_mistake_and_cure(function):
    with pytest.raises(TypeError, match=f"^rule {function.__name__}: .*{MISTAKES[function]}") as e:
        steepest.rule(function)
    said = str(e.value)
    assert said.count("\n") == 0
    assert ". " not in said
    assert len(said) < 330
    assert steepest.rules.get(function.__name__) is None or function is adamw


@pytest.mark.parametrize(
    "given", [3, "adam", lambda p, g, *, lr=1e-3: p - lr * g], ids=["number", "name", "lambda"]
)
def test_what_is_no_named_function_is_refused(given):
    with pytest.raises(TypeError, match=r"@rule was given .*, expected a function with a name;"):
        steepest.rule(given)


def test_a_rule_may_be_defined_again_as_in_a_notebook(averaged_sign):
    def once():
        def mine(p, g, *, lr=1e-3):
            return p - lr * g

        return steepest.rule(mine)

    first, second = once(), once()
    assert first is not second
    assert steepest.rules["mine"] is second


def test_an_average_towards_a_number_is_the_same_in_every_backend():
    """a + h * (1 - a) is no lerp between two tensors."""

    @steepest.rule
    def towards_one(p, g, m, *, lr=0.1, beta=0.9):
        m = m + (1 - beta) * (g - m)
        share = m * m
        return p - lr * (share + (1 - beta) * (1 - share)) * g, m

    ends = []
    for backend in ("cpu", "foreach", "eager"):
        p = torch.nn.Parameter(torch.ones(3))
        made = steepest.optimizer(towards_one, [p], backend=backend)
        for t in range(3):
            p.grad = torch.tensor([1.0, 2.0, 3.0]) * t
            made.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[2])
    torch.testing.assert_close(ends[1], ends[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_logarithm_is_the_same_in_every_backend(dtype):
    @steepest.rule
    def logarithmic(p, g, m, *, t, lr=0.1, beta=0.9):
        m = m + (1 - beta) * (g - m)
        return p - lr * log(1 + abs(m)) * log(2 + t), m

    ends = []
    for backend in ("cpu", "foreach", "eager"):
        p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        made = steepest.optimizer(logarithmic, [p], backend=backend)
        wanted, m = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for t in range(1, 4):
            p.grad = torch.tensor([1.0, -2.0, 3.0], dtype=dtype) * t
            made.step()
            m = 0.9 * m + 0.1 * p.grad.double()
            wanted = wanted - 0.1 * m.abs().log1p() * torch.tensor(2.0 + t).double().log()
        ends.append(p.detach())
        torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-2, atol=1e-6)
    assert log(0.0) == float("-inf")
    assert log(-1.0) != log(-1.0)
    torch.testing.assert_close(ends[0], ends[2])
    torch.testing.assert_close(ends[1], ends[2])
