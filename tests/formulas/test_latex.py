"""The formulas: read back by a reader of LaTeX that knows no rule, they step as the rule does."""

import itertools
import math
import re

import pytest
from matplotlib.mathtext import MathTextParser

import steepest
from steepest import ops as words
from steepest.latex import formula
from steepest.ops import where

TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\\[,;]|\d+(?:\.\d+)?|[a-zA-Z]|'|\S)")
OPEN, CLOSE = {"left", "("}, {"right", ")"}


class Reader:
    """Evaluates the right side of a formula; a symbol is its text, spaces left out."""

    def __init__(self, text, values):
        self.tokens, self.at, self.values = TOKEN.findall(text), 0, values

    def value(self):
        found = self.choice()
        assert self.at == len(self.tokens), self.tokens[self.at :]
        return found

    @property
    def next(self):
        while self.at < len(self.tokens) and self.tokens[self.at] in (r"\,", r"\;"):
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *expected):
        token = self.next
        assert not expected or token in expected, (expected, self.tokens[self.at :])
        self.at += 1
        return token

    def word(self, *words):
        spelt = [[r"\mathrm", "{", *word, "}"] for word in words]
        _ = self.next
        found = [w for w in spelt if self.tokens[self.at : self.at + len(w)] == w]
        self.at += len(found[0]) if found else 0
        return bool(found)

    def choice(self):
        then = self.comparison()
        if not self.word("if"):
            return then
        condition = self.comparison()
        assert self.word("else")
        otherwise = self.choice()
        return then if condition else otherwise

    def comparison(self):
        left = self.sum()
        compare = {
            ">": lambda b: left > b, "<": lambda b: left < b, "=": lambda b: left == b,
            r"\geq": lambda b: left >= b, r"\leq": lambda b: left <= b,
            r"\neq": lambda b: left != b,
        }  # fmt: skip
        return compare[self.take()](self.sum()) if self.next in compare else left

    def sum(self):
        total = -self.product() if self.next == "-" and self.take() else self.product()
        while self.next in ("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self):
        total = self.power()
        ends = {"", "+", "-", "}", ")", "]", ",", "=", ">", "<", r"\geq", r"\leq", r"\neq"}
        while self.next not in {*ends, r"\right"}:
            before = self.at
            if self.word("if", "else"):
                self.at = before
                break
            if self.next == r"\cdot":
                self.take()
            total = total * self.power()
        return total

    def power(self):
        base = self.atom()
        if self.next == "^":
            self.take()
            exponent = self.braced()
            return base**exponent
        return base

    def braced(self):
        self.take("{")
        found = self.choice()
        self.take("}")
        return found

    def bracketed(self, first, last):
        self.take(r"\left")
        self.take(first)
        found = [self.choice()]
        while self.next == ",":
            self.take()
            found.append(self.choice())
        self.take(r"\right")
        self.take(last)
        return found

    def atom(self):
        token = self.next
        if token[0].isdigit():
            return float(self.take())
        if token == "{":
            return self.braced()
        if token == r"\infty":
            self.take()
            return math.inf
        if token == r"\frac":
            self.take()
            above, below = self.braced(), self.braced()
            return above / below if below else math.copysign(math.inf, above)
        if token == r"\sqrt":
            self.take()
            inside = self.braced()
            return math.sqrt(inside) if inside >= 0 else math.nan
        if token in (r"\max", r"\min"):
            self.take()
            return {r"\max": max, r"\min": min}[token](*self.bracketed("(", ")"))
        if token == r"\operatorname":
            self.take()
            name = ""
            self.take("{")
            while self.next != "}":
                name += self.take()
            self.take("}")
            return self.values[f"operator {name}"](*self.bracketed("(", ")"))
        if token == r"\ln":
            self.take()
            return math.log(*self.bracketed("(", ")"))
        if token == r"\left":
            if self.tokens[self.at + 1] == "(":
                return self.bracketed("(", ")")[0]
            bar = self.tokens[self.at + 1]
            return abs(self.bracketed(bar, bar)[0])
        return self.values[self.symbol()]

    def symbol(self):
        text = self.take()
        if text in (r"\hat", r"\bar", r"\tilde", r"\mathrm"):
            text += self.group()
        while self.next == "'":
            text += self.take()
        if self.next == "_":
            self.take()
            text += "_" + self.group()
        return text

    def group(self):
        """A braced group as text."""
        text, depth = "", 0
        while depth or not text:
            token = self.tokens[self.at]
            self.at += 1
            depth += (token == "{") - (token == "}")
            text += token
        return text


def key(symbol):
    return "".join(TOKEN.findall(symbol))


WORDS = {f"operator {w.replace('_', '')}": f for w, f in vars(words).items() if callable(f)} | {
    "operator sign": lambda x: (x > 0) - (x < 0)
}


def read(printed, values):
    """The values of all symbols after the lines of a formula."""
    known = {**WORDS, **{key(printed.symbols[n]): v for n, v in values.items()}}
    for left, right in printed.lines:
        known[key(left)] = Reader(right, known).value()
    return known


def variants():
    for rule in steepest.rules.values():
        options = [(False, True) if isinstance(v, bool) else (v,) for v in rule.choices.values()]
        for values in itertools.product(*options):
            for awkward in (False, True):
                yield rule.name, dict(zip(rule.choices, values, strict=True)), awkward


def tilted(name, value):
    """Another value, so that no factor is 0 or 1 and no threshold is out of reach."""
    return 2.0 if value > 100 else 0.3 if value == 0 else 0.8 * value


@pytest.mark.parametrize(("name", "choices", "awkward"), [*variants()])
def test_what_is_printed_is_the_rule(name, choices, awkward):
    rule = steepest.rules[name]
    printed = formula(rule, **choices)
    hyper = {n: tilted(n, v) if awkward else float(v) for n, v in rule.defaults.items()}
    base = {n: hyper[source] for n, source in rule.captured.items()}
    tensors = dict.fromkeys(rule.tensors, 0.0) | {rule.tensors[0]: 0.7}
    kept = dict(rule.carried)
    names = (rule.tensors[0], *rule.states, *rule.carried)
    for t in range(1, 9):
        tensors[rule.tensors[1]] = [0.9, -0.4, -0.3, 0.2, 1.5, 0.1, -2.0, 0.6][t - 1]
        scalars = {**hyper, **base, **kept, **({"t": float(t)} if rule.counted else {})}
        if "lr" in hyper:
            scalars["lr"] = hyper["lr"] * (1 + 0.1 * t)
        new = rule(*tensors.values(), **scalars, **choices)
        wanted = dict(zip(names, new if isinstance(new, tuple) else (new,), strict=True))
        found = read(printed, {**tensors, **scalars})
        for n in names:
            symbol = key(printed.symbols[n])
            after = symbol.replace("t-1}", "t}")
            assert symbol != after
            # what a choice leaves alone is not printed
            assert found.get(after, found[symbol]) == pytest.approx(wanted[n], 1e-9), (n, t)
        tensors |= {n: float(wanted[n]) for n in (rule.tensors[0], *rule.states)}
        kept = {n: float(wanted[n]) for n in rule.carried}


@pytest.mark.parametrize("name", steepest.rules)
def test_every_symbol_is_one_thing_and_another_renderer_knows_it(name):
    rule = steepest.rules[name]
    printed = formula(rule)
    parser = MathTextParser("path")
    for left, right in printed.lines:
        parser.parse(f"${left} = {right}$")
    assigned = [left for left, _ in printed.lines]
    assert len({*assigned}) == len(assigned)
    assert len({*printed.symbols.values()}) == len(printed.symbols)
    text = str(printed)
    assert text.count("&=") == len(assigned)
    assert text.count("{") == text.count("}")


def test_adam_reads_as_in_its_paper():
    assert formula(steepest.rules["adam"]).lines == [
        ("m_{t}", r"\beta_{1} \, m_{t-1} + \left(1 - \beta_{1}\right) \, g_{t}"),
        ("v_{t}", r"\beta_{2} \, v_{t-1} + \left(1 - \beta_{2}\right) \, g_{t}^{2}"),
        (r"\hat{m}_{t}", r"\frac{m_{t}}{1 - \beta_{1}^{t}}"),
        (r"\hat{v}_{t}", r"\frac{v_{t}}{1 - \beta_{2}^{t}}"),
        (
            r"\theta_{t}",
            r"\theta_{t-1} - \frac{\alpha \, \hat{m}_{t}}{\sqrt{\hat{v}_{t}} + \epsilon}",
        ),
    ]


def test_a_rule_that_hands_on_reads_as_the_one_it_hands_on_to():
    assert formula(steepest.rules["adamw"]).lines == formula(steepest.rules["adam"]).lines


def once(function, **values):
    """The last line's value of a rule of one's own, read back, and what the rule says itself."""
    rule = steepest.rule(function)
    tensors = dict(zip(rule.tensors, (0.7, 0.9, 0.2), strict=False))
    given = {**rule.defaults, **values}
    found = read(formula(rule), {**tensors, **given})
    wanted = rule(*tensors.values(), **{n: v for n, v in given.items() if n in rule.scalars})
    return found, wanted


def test_the_order_of_operations_survives():
    def knotty(p, g, m, *, lr=0.1, a=2.0, b=3.0, c=0.5):
        m = -((m - (g - a)) ** 2) / (a - (b - c)) / -(c / (b / a))
        x = (-g) ** 2 * (a * b) ** c**2 - -(g * (a / b) ** 3) + -3 * g - (-2) * -lr
        return p - lr * (m + (x - (m - x)) * (a + b)) ** 2 / (abs(g - b) ** 2 + 1e-3), m

    found, wanted = once(knotty)
    assert found["\\theta_{t}"] == pytest.approx(wanted[0], 1e-12)
    assert found["m_{t}"] == pytest.approx(wanted[1], 1e-12)


def test_numbers_with_signs_and_exponents():
    def signed(p, g, m, *, lr=0.1, a=2.0):
        m = -3e-7 + g * -1e-7 + (m + -2.5) * 2e20 - -a
        return -p + (-g + -1e-12) - (-2 - -lr) ** 3 + 1e6 * a - 12345678, m

    found, wanted = once(signed)
    assert found["\\theta_{t}"] == pytest.approx(wanted[0], 1e-14)
    assert found["m_{t}"] == pytest.approx(wanted[1], 1e-14)
    text = str(formula(steepest.rules["signed"]))
    assert "+ -" not in text
    assert "- -" not in text


def test_what_is_no_number():
    def lost(p, g, *, t, lr=0.1):
        return p - where(t > 1, lr, float("nan")) * g * where(t > 2, 1, -math.inf)

    line = formula(steepest.rule(lost)).lines[0][1]
    assert r"\mathrm{nan}" in line
    assert r"-\infty" in line
    MathTextParser("path").parse(f"${line}$")


@pytest.mark.parametrize("t", [1, 2, 5])
def test_choices_within_choices(t):
    def branchy(p, g, *, t, lr=0.1, a=2.0):
        inner = where(t > 3, where(t >= 4, a, 1), where(t == 1, -a, 1e-7))
        return p - lr * where(t > 1, inner + 1, inner) * where(t < 2, g, 2 * g)

    found, wanted = once(branchy, t=float(t))
    assert found["\\theta_{t}"] == pytest.approx(wanted, 1e-12)


def test_names_that_would_clash_get_a_stroke():
    def clash(p, g, m, *, lr=0.1, alpha=0.5, eta=0.3, gamma=2.0, eps=1.0, epsilon=3.0):
        theta = eps * g + epsilon * m
        m_hat = theta**2
        eta = eta * m_hat
        return p - lr * eta**2 * alpha * gamma, theta

    rule = steepest.rule(clash)
    printed = formula(rule)
    symbols = [*printed.symbols.values(), *(left for left, _ in printed.lines)]
    assert len({*symbols}) == len(symbols)
    found, wanted = once(clash)
    assert found[key(printed.lines[-1][0])] == pytest.approx(wanted[0], 1e-12)
    for left, right in printed.lines:  # a stroke is a superscript: {x'}^2, never x'^2
        MathTextParser("path").parse(f"${left} = {right}$")
        assert not re.search(r"'(_\{[^}]*\})?\^", right)


def test_a_state_that_takes_another_s_place_is_printed():
    def shifted(p, g, old, older, *, lr=0.1):
        return p - lr * (g + older), g, old

    lines = formula(steepest.rule(forgets=["old", "older"])(shifted)).lines
    assert (r"\mathrm{old}_{t}", "g_{t}") in lines
    assert (r"\mathrm{older}_{t}", r"\mathrm{old}_{t-1}") in lines


def test_a_profiler_is_left_in_place():
    import sys

    def watch(*_):
        return None

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        formula(steepest.rules["adam"])
        assert sys.getprofile() is watch
    finally:
        sys.setprofile(before)
