"""What it takes to add a backend or a codec: one object each, made here and used everywhere."""

import math

import pytest
import torch
from torch import nn

import steepest
from steepest import catalogue, codecs
from steepest.backends import BACKENDS, Backend
from steepest.backends.bucket import Bucket
from steepest.backends.inputs import Ready
from steepest.backends.wanted import program_of, takes_sparse
from steepest.ops import sqrt
from steepest.printing import Printer, host_function, host_notes, safe_name
from steepest.trace import FUNCTIONS

# a backend: Python's floats, one element after the other

RESERVED = {"c", "step"}


def runs(program):
    return not (program.matrix or program.reductions)


def takes(wanted, p):
    dense = not takes_sparse(wanted.selection, p.grad) and not p.is_complex()
    return dense and not wanted.differentiable and runs(program_of(wanted.selection))


def source(program):
    if not runs(program):
        return None
    tensors = {x: safe_name(x, RESERVED) for x in (*program.rule.tensors[:2], *program.states)}
    printer = Printer(program, taken={*RESERVED, *FUNCTIONS, *tensors.values()})
    printer.names |= {program.inputs[x]: name for x, name in tensors.items()}
    lines = [f"{printer.name(node, 'c')} = c[{i}]" for i, node in enumerate(program.slots)]
    lines += printer.assignments(program.body, program.outputs.values(), "x")
    new = [printer.expression(node) for node in program.outputs.values()]
    arguments = ", ".join([*tensors.values(), "c"])
    text = [f"def step({arguments}):", *lines, f"return {', '.join(new)},"]
    return "\n    ".join(text) + "\n" + "".join(f"    # {x}\n" for x in host_notes(program))


class FloatsBucket(Bucket):
    def prepare(self, inputs):
        program, names = self.program, dict(FUNCTIONS)
        exec(source(program), names)
        host, of = host_function(program, 8), [self.selection.rule.tensors[0], *program.states]

        def step(_):
            for row in self.rows([*inputs.grads]):
                t = [row.t] if program.reads_t else []
                values = host(*t, *inputs.scalars, *row.carried)
                lists = self.columns(inputs.owners, inputs.state, row.at)
                loaded = self.load(lists)
                for k, p, *states in zip(row.at, *loaded, strict=True):
                    flat = [x.detach().view(-1) for x in (p, *states)]
                    for i, g in enumerate(inputs.grads[k].reshape(-1).tolist()):
                        old, *rest = [float(x[i]) for x in flat]
                        new = names["step"](old, g, *rest, values)
                        for name, value in zip(program.outputs, new, strict=True):
                            flat[of.index(name)][i] = value
                self.store(lists, loaded, row)
                self.count(inputs.owners, inputs.state, row, values[len(program.slots) :])

        return Ready(step, list)


@pytest.fixture
def floats(monkeypatch):
    monkeypatch.setitem(BACKENDS, "floats", Backend("floats", takes, FloatsBucket, source))


def path(rule, backend):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(2, 3, dtype=torch.float64)), nn.Parameter(torch.ones(2))]
    made = steepest.optimizer(rule, params, backend=backend)
    for step in range(4):
        for p in params:
            p.grad = torch.randn_like(p)
        params[1].grad = None if step == 1 else params[1].grad
        made.step()
    return params, made


@pytest.mark.parametrize("rule", ["adabelief", "nadam", "adan", "sgd", "lion"])
def test_a_new_backend_is_one_object_in_the_list(floats, rule):
    ours, made = path(rule, "floats")
    theirs, _ = path(rule, "eager")
    assert made.stepped_by() == {"floats"}
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12 if p.dtype == torch.float64 else 1e-6, atol=0)
    assert catalogue.shown(steepest.rules[rule], "floats").startswith("def step(p, g")


def test_what_it_does_not_take_goes_to_the_next_in_the_list(floats):
    _, made = path("lamb", "floats")
    assert made.stepped_by() == {"cpu"}
    with pytest.raises(ValueError, match="no code for lamb, because this rule sums over whole"):
        catalogue.shown(steepest.rules["lamb"], "floats")
    with pytest.raises(ValueError, match=r"'gpu' was given, expected one of .*'floats'"):
        path("adam", "gpu")


def test_names_of_the_users_never_hide_those_of_generated_code():
    def hides(job, k, real, n, now, *, t, row=1e-3, zero=0.9, torch=1e-8):
        real = zero * real + (1 - zero) * k
        n = n + k * k + now * now
        return job - row * real / (sqrt(n) + torch) / (1 - zero**t), real, n, now + k

    rule = steepest.definition.Rule(hides)
    for backend in BACKENDS:
        p = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        q = list(p.detach().clone())
        states = [[0.0] * 3 for _ in q]
        family = steepest.optimizer(rule, [p], backend=backend)
        for step in range(1, 4):
            p.grad = torch.full_like(p, 0.1 * step)
            family.step()
            for i, state in enumerate(states):
                q[i], *states[i] = rule(q[i], 0.1 * step, *state, t=step)
        torch.testing.assert_close(p.detach(), torch.stack(q), rtol=1e-14, atol=0)


def test_the_reserved_words_are_those_of_the_text():
    """Every name in a loop is the rule's, a word of rules, numbered, or reserved."""
    import ast
    import builtins

    from steepest.backends.cpu import printer

    for rule in steepest.rules.values():
        program = rule.trace()
        if program.matrix:
            continue
        for storage in ("", *printer.STORED):
            for first in (False, True)[: 1 + bool(program.first)]:
                tree = ast.parse(printer.source(program, storage, first))
                found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
                mine = {"t", *rule.tensors, *rule.scalars, *rule.function.__code__.co_varnames}
                mine |= {f"{x}_new" for x in mine} | {f"{x}_" for x in mine}
                mine |= {f"{x}_{y}" for x in ("last", "next") for y in mine}
                numbered = {x for x in found if safe_name(x, ()) != x}
                rest = found - mine - numbered - {*FUNCTIONS} - {*dir(builtins)}
                assert rest <= printer.RESERVED, rule.name


# a codec: states of 8 bits, in blocks with a scale each

BLOCK = 64


class Blocks(codecs.Codec):
    name = "blocks"

    def dtype(self, wide):
        return torch.int8

    def extras(self, key, dtype):
        shape = lambda shape: (math.ceil(math.prod(shape) / BLOCK),)  # noqa: E731
        return {f"{key}_scale": codecs.StateSpec(torch.float32, shape)}

    def load(self, tensors, extras, dtype):
        loaded = []
        for x, scales in zip(tensors, extras[0], strict=True):
            each = scales.to(dtype).repeat_interleave(BLOCK)[: x.numel()]
            loaded.append(x.to(dtype) * each.view(x.shape))
        return loaded

    def store(self, tensors, new, extras, noise):
        for x, n, scales in zip(tensors, new, extras[0], strict=True):
            flat = n.reshape(-1)
            padded = nn.functional.pad(flat, (0, BLOCK * len(scales) - len(flat))).view(-1, BLOCK)
            scales.copy_(padded.abs().amax(1) / 127)
            steps = padded / scales.clamp(min=1e-30)[:, None]
            x.copy_(steps.round().view(-1)[: len(flat)].view(x.shape))


def rounded(x):
    """To 127 steps of the largest in each block of BLOCK elements, all of them full."""
    blocks = x.view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    return ((blocks / scales).round() * scales).view(x.shape)


@pytest.mark.parametrize("backend", [None, "foreach", "eager"])
def test_states_of_8_bits_are_one_more_codec(backend, monkeypatch):
    choose = codecs.of_state
    monkeypatch.setattr(codecs, "of_state", lambda k: Blocks() if k == "exp_avg" else choose(k))
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, BLOCK))
    target, by_hand = torch.randn(4, BLOCK), p.detach().clone()
    m = v = torch.zeros_like(by_hand)
    made = steepest.AdamW([p], lr=0.01, weight_decay=0.1, backend=backend)
    for t in range(1, 31):
        p.grad = g = by_hand - target
        made.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        move = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        by_hand = by_hand * (1 - 0.01 * 0.1) - 0.01 * move
        m = rounded(m)
    state = made.state[p]
    assert made.stepped_by() == {backend or "foreach"}  # the loop has no such codec
    assert state["exp_avg"].dtype is torch.int8
    assert state["exp_avg_scale"].shape == (4,)
    assert state["exp_avg_sq"].dtype is torch.float32
    torch.testing.assert_close(p.detach(), by_hand, rtol=1e-4, atol=1e-4)
