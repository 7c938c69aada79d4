"""Random rules: every backend computes what the rule itself computes on numbers."""

import linecache
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import steepest
from steepest import ops as words
from steepest.backends.foreach import printer as foreach
from steepest.definition import Rule
from steepest.printing import host_function

WORDS = ("sqrt", "abs", "sign", "maximum", "minimum", "where")
HOSTS = st.sampled_from(["lr", "beta", "t", "0.5", "2.0", "1", "(1 - beta)", "(1 - beta**t)",
                         "where(t > 2, lr, beta)", "maximum(lr, t)"])  # fmt: skip


@st.composite
def expressions(draw, names, depth=3):
    """A tensor expression over `names`, kept finite."""
    if depth == 0:
        return draw(st.sampled_from(names))
    a = draw(expressions(names, depth - 1))
    b = draw(expressions(names, depth - 1))
    h = draw(HOSTS)
    return draw(st.sampled_from([
        a, f"({a} + {b})", f"({a} - {b})", f"({a} * {b})", f"({h} * {a})",
        f"({a} / (abs({b}) + 0.7))",
        f"({h} / (abs({a}) + 0.7))", f"({a} / {h})", f"sqrt(abs({a}))", f"sign({a})", f"({a} ** 2)",
        f"maximum({a}, {b})", f"minimum({h}, {a})", f"({h} - {a})", f"({a} + {h})", f"(-{a})",
        f"where(t > 1, {a}, {b})", f"where(t > 2, {a}, {h})", f"({a} + {h} * ({b} - {a}))",
    ]))  # fmt: skip


@st.composite
def rules(draw):
    """Source of a rule with two states: locals that are read again, outputs that are old inputs."""
    names, lines = ["p", "g", "q", "r"], []
    for i in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(["q", "r", "g", f"y{i}"]))
        lines.append(f"    {name} = {draw(expressions(names))}")
        names = [*dict.fromkeys([*names, name])]
    p = draw(expressions(names))
    q, r = (
        draw(st.one_of(st.sampled_from(["p", "g", "q", "r"]), expressions(names, 2))) for _ in "qr"
    )
    q = q if q in names else f"minimum(maximum({q}, -3), 3)"
    head = "def fuzzed(p, g, q, r, *, t, lr=0.1, beta=0.9):"
    return "\n".join([head, *lines, f"    return 0.9 * p - lr * {p}, {q}, {r}\n"])


def made(source):
    names = {w: getattr(words, w) for w in WORDS}
    linecache.cache["fuzz"] = (len(source), None, source.splitlines(True), "fuzz")
    exec(compile(source, "fuzz", "exec"), names)
    try:
        return Rule(names["fuzzed"], forgets=["q", "r"])
    except TypeError as error:
        if "never changed" not in str(error) and "never read" not in str(error):
            raise
        return None


def close(a, b):
    return all(
        math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9) or abs(x) > 1e30 or math.isnan(x)
        for x, y in zip(a, b, strict=True)
    )


@settings(
    max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(rules())
def test_foreach_computes_what_the_rule_computes(source):
    rule = made(source)
    if rule is None:
        return
    program = rule.trace()
    run, host = foreach.compiled(program), host_function(program, 8)
    start = [0.3, -0.8, 0.5, 1.2]
    numbers, tensors = list(start), [[torch.tensor([x], dtype=torch.float64)] for x in start]
    scalars = {"lr": 0.1, "beta": 0.9}
    for t in (1, 2, 3):
        p, q, r = rule(*numbers, t=t, **scalars)
        numbers = [float(p), numbers[1], float(q), float(r)]
        states = dict(zip("qr", tensors[2:], strict=True))
        values = host(*({"t": t, **scalars}[n] for n in program.scalars))
        run(tensors[0], tensors[1], *(states[s] for s in program.states), values)
        got = [float(x[0]) for x in tensors]
        assert close(numbers, got), (source, foreach.source(program), numbers, got)


TRICKY = {
    "ratio": ("p, g, v", "x = v + g**2", "p - lr * (x / (x + 1)), 0.5 * v + g"),
    "signed": ("p, g, m", "m = 0.9 * m + 0.1 * g; x = g - m", "p - lr * (x * sqrt(abs(x))), m"),
    "either": (
        "p, g, m",
        "x = g + m; y = where(t > 1, x, sqrt(abs(x)))",
        "p - lr * y, 0.9 * m + g",
    ),
    "previous": ("p, g, q", "", "p - lr * (g + 0.1 * q), p"),
    "exchange": ("p, g, a, b", "", "p - lr * (a + g), b + g, a"),
    "letters": ("p, g, c, n", "row = c + g", "p - lr * (row + n), 0.5 * row, n + c"),
    "scalars": ("p, g, x1", "x1 = x1 + row * g", "p - lr * x1 * real * n, x1"),
    "torch_named": ("p, g, torch", "torch = torch + g", "p - lr * torch * t, torch"),
}


@pytest.mark.parametrize("backend", ["cpu", "foreach", "eager"])
@pytest.mark.parametrize("name", TRICKY)
def test_rules_that_were_once_computed_wrongly(name, backend):
    tensors, line, outputs = TRICKY[name]
    scalars = ", row=0.9, real=1.5, n=0.7" if name == "scalars" else ""
    head = f"def fuzzed({tensors}, *, t, lr=0.1{scalars}):"
    source = f"{head}\n    {line or 'pass'}\n    return {outputs}\n"
    names = {w: getattr(words, w) for w in WORDS}
    exec(compile(source, "fuzz", "exec"), names)
    rule = Rule(names["fuzzed"], forgets={"previous": ["q"], "exchange": ["a", "b"]}.get(name, []))
    p = torch.tensor([0.7, -0.4], dtype=torch.float64)
    made = steepest.optimizer(rule, [p], backend=backend)
    numbers = [[x] + [0.0] * (tensors.count(",") - 1) for x in p.tolist()]
    for t in (1, 2, 3):
        p.grad = torch.tensor([0.3, -0.9], dtype=torch.float64) / t
        numbers = [
            list(rule(x[0], g, *x[1:], t=t)) for x, g in zip(numbers, p.grad.tolist(), strict=True)
        ]
        made.step()
        assert p.tolist() == pytest.approx([x[0] for x in numbers], rel=1e-12)
