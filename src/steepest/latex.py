"""A rule as LaTeX formulas, as a paper would print them.

The rule is called on symbols, as in `trace.py`, but no operation is folded or regrouped for speed.
The subscript of a state is the step: t - 1 marks the state's value before step t.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

from .definition import Rule
from .trace import Node, Tape

_GREEK = re.findall(
    r"\w+",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "phi chi psi omega",
)
_SPELT = {"eps": "epsilon", "lambd": "lambda"}
_ACCENTS = ("hat", "bar", "tilde")
_LETTERS = {"p": ("theta", "x"), "lr": ("alpha", "eta", "gamma"), "momentum": ("mu",)}
"""Argument -> its names in papers. The first name that no other argument has is taken."""
# operator -> its sign and precedence
_INFIX = {
    "add": ("+", 2),
    "sub": ("-", 2),
    "gt": (">", 1),
    "ge": (r"\geq", 1),
    "lt": ("<", 1),
    "le": (r"\leq", 1),
    "eq": ("=", 1),
    "ne": (r"\neq", 1),
}
_FENCED = {
    "sqrt": r"\sqrt{%s}",
    "log": r"\ln\left(%s\right)",
    "abs": r"\left| %s \right|",
    "norm": r"\left\Vert %s \right\Vert",
    "maximum": r"\max\left(%s\right)",
    "minimum": r"\min\left(%s\right)",
}
_MACHINERY = (__name__, Tape.__module__, "steepest.ops")
NEGATIVE, PRODUCT, POWER, ATOM = 1.5, 3, 4, 5
"""Precedences. A sum has 2, a comparison 1, a choice 0.

NEGATIVE is below a sum, because a negative term of a sum needs parentheses. The first term needs
none.
"""


class Formula(NamedTuple):
    """The formulas of a rule.

    lines: the left and right side of each assignment, in order. symbols: argument -> its symbol.
    For the parameter, a state or a carried scalar, this symbol stands for the value before the
    step.
    """

    lines: list[tuple[str, str]]
    symbols: dict[str, str]

    def __str__(self) -> str:
        rows = " \\\\\n".join(f"{left} &= {right}" for left, right in self.lines)
        return f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"


class _AsWritten(Tape):
    """Keeps every operation as it is, but rewrites averages into the form that papers use."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Node] = []

    def make(self, op: str, *values: Any) -> Node:
        args = tuple(v if isinstance(v, Node) else self.constant(v) for v in values)
        if op == "add" and args[1].op == "mul":  # a + (1 - b) (c - a): more precise for floats
            a, (rest, move) = args[0], args[1].args
            if rest.op == move.op == "sub" and move.args[1] is a and rest.args[0].value == 1:
                kept = self.make("mul", rest.args[1], a)
                return self.make("add", kept, self.make("mul", rest, move.args[0]))
        self.made.append(Node(self, op, args, all(a.host for a in args)))
        return self.made[-1]


def formula(rule: Rule, **choices: Any) -> Formula:
    """Returns the formulas of a rule for the given static choices, in LaTeX that both MathJax and
    matplotlib can typeset.
    """
    tape = _AsWritten()
    every = (*rule.tensors, *rule.scalars)
    inputs = {n: tape.node("input", (), n in rule.scalars, n) for n in every}
    scalars = {n: inputs[n] for n in rule.scalars}
    tensors = [inputs[n] for n in rule.tensors]
    new, labels = _call_rule(rule, tensors, {**scalars, **rule.choices, **choices})
    names = (rule.tensors[0], *rule.states, *rule.carried)
    outputs = {
        n: v if isinstance(v, Node) else tape.constant(v) for n, v in zip(names, new, strict=True)
    }
    return _Writer(rule, inputs).write(tape.made, outputs, labels)


def _call_rule(rule: Rule, tensors: list[Node], scalars: dict[str, Any]) -> Any:
    """Call the rule. Returns its result, and node -> the name of a local variable.

    The variable holds the node in the rule or in one of its helper functions.
    """
    labels: dict[Node, str] = {}
    arguments = {*rule.tensors, *rule.scalars}

    def watch(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "return" or frame.f_globals.get("__name__") in _MACHINERY:
            return
        # the arguments of a helper do not name a value of the rule
        ignored = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]} - arguments
        for name in sorted({*frame.f_locals} - ignored):
            value = frame.f_locals[name]
            if isinstance(value, Node) and value.op not in ("input", "const"):
                labels[value] = name

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        new = rule.function(*tensors, **scalars)
    finally:
        sys.setprofile(before)
    return new if isinstance(new, tuple) else (new,), labels


class _Writer:
    def __init__(self, rule: Rule, inputs: dict[str, Node]) -> None:
        self.rule, self.inputs, self.taken = rule, inputs, set[str]()
        self.primes: dict[str, int] = {}
        self.before: dict[str, str] = {}
        for name in inputs:
            self.primes[name] = self.count_primes(name)
            past = "t-1" if name in (*rule.tensors, *rule.carried) else ""
            time = "t" if name == rule.tensors[1] else past
            self.before[name] = self.symbol(name, time, self.primes[name])
        self.names = {inputs[n]: (text, ATOM) for n, text in self.before.items()}
        self.varying: dict[Node, bool] = {}

    def count_primes(self, name: str) -> int:
        """Returns how many primes (') make a name's symbol unique, and reserves this symbol."""
        count = 0
        while self.symbol(name, "", count) in self.taken:
            count += 1
        self.taken.add(self.symbol(name, "", count))
        return count

    def symbol(self, name: str, time: str, primes: int) -> str:
        """Returns the symbol: `v_max` at t is v_{max,t}, `m_hat` has a hat, `beta1` is Greek."""
        if name in _LETTERS and name in self.inputs:
            used = {*self.inputs} - {name}
            name = next((x for x in _LETTERS[name] if x not in used), name)
        parts = re.fullmatch(r"([a-zA-Z]+)(\d*)((?:_[a-zA-Z0-9]+)*)_*", name)
        base, number, rest = parts.groups() if parts else (name.strip("_"), "", "")
        words = [w for w in rest.split("_") if w]
        base = _SPELT.get(base, base)
        text = base if len(base) == 1 else rf"\mathrm{{{base.replace('_', '')}}}"
        text = rf"\{base}" if base in _GREEK else text
        for accent in _ACCENTS:
            text = rf"\{accent}{{{text}}}" if accent in words else text
        words = [w for w in words if w not in _ACCENTS]
        words = [r"\infty" if w == "inf" else rf"\mathrm{{{w}}}" for w in words]
        below = ",".join(filter(None, [number, *words, time]))
        return text + "'" * primes + (f"_{{{below}}}" if below else "")

    def write(self, made: list[Node], outputs: dict[str, Node], labels: dict[Node, str]) -> Formula:
        """Returns a formula with a line for each named value that an output depends on."""
        lines, used, pending = [], set[Node](), [*outputs.values()]
        while pending:
            node = pending.pop()
            if node not in used:
                used.add(node)
                pending.extend(node.args)
        new: dict[Node, str] = {}
        for name, node in outputs.items():
            new.setdefault(node, name)
        for node in (n for n in made if n in used and (n in new or n in labels)):
            right = self.text(node)[0]
            if node in new:
                left = self.symbol(new[node], "t", self.primes[new[node]])
            else:
                name = labels[node]
                left = self.symbol(name, "t" if self.varies(node) else "", self.count_primes(name))
            lines.append((left, right))
            self.names[node] = left, ATOM
        for name, node in outputs.items():  # an input, a constant, or the value of another output
            left = self.symbol(name, "t", self.primes[name])
            if self.names.get(node, ("",))[0] != left and node is not self.inputs[name]:
                lines.append((left, self.text(node)[0]))
        return Formula(lines, self.before)

    def varies(self, node: Node) -> bool:
        """Whether the value may change from step to step."""
        if node not in self.varying:
            constant = {*self.rule.defaults, *self.rule.captured}
            varies = node.op == "input" and node.value not in constant
            self.varying[node] = varies or any(map(self.varies, node.args))
        return self.varying[node]

    def within(self, node: Node, binds: float) -> str:
        """Returns the node as an operand, in parentheses if needed.

        binds: the precedence of the operator.
        """
        text, own = self.text(node)
        return text if own >= binds else rf"\left({text}\right)"

    def text(self, node: Node) -> tuple[str, float]:
        """Returns the node in LaTeX, and the precedence of this LaTeX."""
        if node in self.names:
            return self.names[node]
        args, op = node.args, node.op
        if op == "const":
            return _number(node.value)
        if op in _INFIX:
            sign, binds = _INFIX[op]
            left = self.within(args[0], binds - 0.5)
            right = self.within(args[1], binds + (op != "add"))
            right = rf"\left({right}\right)" if right[0] == "-" else right
            return f"{left} {sign} {right}", binds
        if op == "mul" and args[0].value == -1:
            return f"-{self.within(args[1], PRODUCT)}", NEGATIVE
        if op == "mul":
            left, right = (self.within(a, PRODUCT) for a in args)
            times = r"\cdot" if right[0].isdigit() else r"\,"
            return f"{left} {times} {right}", PRODUCT
        if op == "div":
            return rf"\frac{{{self.text(args[0])[0]}}}{{{self.text(args[1])[0]}}}", POWER
        if op == "pow":  # a prime is a superscript itself, so its base goes into braces
            base = self.within(args[0], ATOM)
            base = f"{{{base}}}" if "'" in base else base
            return f"{base}^{{{self.text(args[1])[0]}}}", POWER
        if op == "where":
            condition, then, other = (self.within(a, 1) for a in args)
            return rf"{then} \; \mathrm{{if}} \; {condition} \; \mathrm{{else}} \; {other}", 0
        while op in ("maximum", "minimum") and args[0].op == op and args[0] not in self.names:
            args = (*args[0].args, *args[1:])  # one maximum of three instead of two nested ones
        call = _FENCED.get(op, rf"\operatorname{{{op.replace('_', '')}}}\left(%s\right)")
        return call % ", ".join(self.text(a)[0] for a in args), ATOM


def _number(value: float) -> tuple[str, float]:
    binds = NEGATIVE if value < 0 else ATOM
    if value != value:
        return r"\mathrm{nan}", binds
    if abs(value) == float("inf"):
        return r"\infty" if value > 0 else r"-\infty", binds
    is_integer = value == int(value) and abs(value) < 1e15
    mantissa, _, exponent = (repr(int(value)) if is_integer else repr(value)).partition("e")
    if not exponent:
        return mantissa, binds
    power = rf"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}", min(binds, PRODUCT)
