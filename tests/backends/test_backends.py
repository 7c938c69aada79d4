"""Every backend against the reference, and against laws that hold whatever the rule.

The reference ("eager") calls the rule itself; that it is right is shown in `tests/oracles/`.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import steepest
from steepest.backends import threads
from steepest.oracles import ORACLES, PRECISE, Setting

BACKENDS = ("cpu", "foreach", "eager")
STEPS = 8  # AdaBelief and RAdam are rectified from the sixth on

pytestmark = pytest.mark.filterwarnings(r"ignore:AdaBelief\(amsgrad=True\) has no effect")


@pytest.fixture(autouse=True)
def _one_thread(_settings):
    torch.set_num_threads(1)  # small tensors: a second thread would only wait


every_setting = pytest.mark.parametrize("setting", PRECISE, ids=map(str, PRECISE))
PLAIN = [next(s for s in PRECISE if s.rule == rule) for rule in ORACLES]
every_rule = pytest.mark.parametrize("setting", PLAIN, ids=[s.rule for s in PLAIN])
every_backend = pytest.mark.parametrize("backend", BACKENDS)


# what looks at whole tensors or matrices, and what sums over all of them
WHOLE = {n for n, r in steepest.rules.items() if r.trace().reductions or r.trace().matrix}
SPANNING = {n for n, r in steepest.rules.items() if r.trace().spans}


def each(settings: Any) -> Any:
    return pytest.mark.parametrize("setting", settings, ids=[*map(str, settings)])


def made(setting: Setting, params: Sequence[Tensor], backend: str, **more: Any) -> Any:
    return setting.made_by.ours(list(params), **{**setting.hyper, **more}, backend=backend)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, each on a scale of its own between 0.01 and 100."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    scale = torch.rand(shape, generator=random, dtype=torch.float64)
    if dtype.is_complex:
        x = torch.complex(x, torch.randn(shape, generator=random, dtype=torch.float64))
    return (x * 100 ** (2 * scale - 1)).to(dtype)


def values(optimizer: Any, params: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Copies of parameters and states."""
    return [
        {"p": p.detach().clone()}
        | {k: torch.as_tensor(v).clone() for k, v in optimizer.state.get(p, {}).items()}
        for p in params
    ]


class Peak:
    """Compares step by step, relative to the largest magnitude that each element has had so far."""

    def __init__(self, tolerance: float, starts: Sequence[Tensor]) -> None:
        self.tolerance = tolerance
        self.peaks = {
            (i, key): _real(p.detach()).abs()
            for i, p in enumerate(starts)
            for key in ("p", "z")  # Schedule-Free's z starts where the parameter does
        }

    def check(self, mine: list[dict[str, Tensor]], reference: list[dict[str, Tensor]]) -> None:
        for i, (a, b) in enumerate(zip(mine, reference, strict=True)):
            assert a.keys() == b.keys()
            for key in a:
                assert a[key].dtype == b[key].dtype
                x, y = _real(a[key]), _real(b[key])
                peak = torch.maximum(self.peaks.get((i, key), y.abs()), y.abs())
                self.peaks[i, key] = peak
                assert bool(torch.isfinite(y).all()), f"the reference's {key} is not finite"
                # below the smallest normal number digits are lost
                smallest = torch.finfo(a[key].dtype).smallest_normal
                off = (x - y).abs() > self.tolerance * peak.clamp_min(smallest)
                found = f"{x[off][:3]} and not {y[off][:3]}"
                assert not bool(off.any()), f"{key} of tensor {i}: {found}"


def _real(x: Tensor) -> Tensor:
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def tolerance(dtype: torch.dtype) -> float:
    # a few roundings a step; in float64 the bound of the oracles
    return 1e-12 if dtype is torch.float64 else 64 * torch.finfo(dtype).eps


# shapes and layouts


def leaves(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of every odd kind, and the memory around those that are views of a larger one."""
    shapes = [(), (1,), (3,), (5, 7), (2, 3, 4, 5), (65537,), (0,), (4, 0)]
    plain = [drawn(s, dtype, seed=i) for i, s in enumerate(shapes)]
    last = drawn((2, 3, 4, 5), dtype, 10).to(memory_format=torch.channels_last)
    transposed = drawn((6, 4), dtype, 11).t()
    around = [drawn((8, 9), dtype, 12), drawn((40,), dtype, 13), drawn((3, 6, 5), dtype, 14)]
    slices = [around[0][::2, 1::3], around[1][3:39:4], around[2][:, 2:4].transpose(0, 2)]
    found = [*plain, last, transposed, *slices, drawn((7, 5), dtype, 15), last.clone()]
    return [p.detach().requires_grad_() for p in found], around


def gradient_for(p: Tensor, seed: int) -> Tensor:
    """A gradient, at every third seed in another memory order than the parameter."""
    g = drawn(tuple(p.shape), p.dtype, seed)
    if seed % 3 == 0 and g.dim() > 1:
        return g.mT.contiguous().mT
    if seed % 3 == 1 and g.dim() == 4:
        return g.contiguous(memory_format=torch.channels_last)
    return g


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", ["cpu", "foreach"])
@every_setting
def test_shapes_and_layouts(setting, backend, dtype):
    if setting.rule in WHOLE and dtype is torch.float32:
        pytest.skip("a norm in float32 here, in float64 there")
    (mine, around), (reference, _) = leaves(dtype), leaves(dtype)
    before = [x.clone() for x in around]
    strides = [p.stride() for p in mine]
    # p0 - p is as short as d0: at Prodigy's default a last bit of p is 1e-10 of it
    more = {"d0": 1e-2} if setting.rule == "prodigy" else {}
    ours, theirs = made(setting, mine, backend, **more), made(setting, reference, "eager", **more)
    compare = Peak(tolerance(dtype), reference)
    for t in range(STEPS):
        for i, (p, q) in enumerate(zip(mine, reference, strict=True)):
            p.grad, q.grad = (gradient_for(x, 100 * t + i) for x in (p, q))
        kept = [p.grad.clone() for p in mine]
        ours.step()
        theirs.step()
        compare.check(values(ours, mine), values(theirs, reference))
        assert all(torch.equal(p.grad, g) for p, g in zip(mine, kept, strict=True))
    assert [p.stride() for p in mine] == strides
    # what lies between the elements of a slice belongs to somebody else
    for now, then, inside in zip(around, before, SLICES, strict=True):
        outside = torch.ones(now.shape, dtype=torch.bool)
        inside(outside).fill_(False)
        assert torch.equal(now[outside], then[outside])
        assert not torch.equal(now, then)


SLICES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[::2, 1::3],
    lambda x: x[3:39:4],
    lambda x: x[:, 2:4],
)


# other dtypes


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_setting
def test_half_precision(setting, dtype, backend):
    """A step in float32, with float32 states, whose parameter alone is rounded to the half."""
    shapes = [(), (7,), (5, 6)]
    mine = [drawn(s, dtype, k).requires_grad_() for k, s in enumerate(shapes)]
    single = [p.detach().float().requires_grad_() for p in mine]
    ours, theirs = made(setting, mine, backend), made(setting, single, "eager")
    states, rounded = Peak(tolerance(torch.float32), single), Peak(torch.finfo(dtype).eps, single)
    for t in range(STEPS):
        for i, (p, q) in enumerate(zip(mine, single, strict=True)):
            p.grad = drawn(tuple(p.shape), dtype, 100 * t + i)
            q.grad = p.grad.float()
        ours.step()
        theirs.step()
        found, wanted = values(ours, mine), values(theirs, single)
        assert all(row["p"].dtype is dtype for row in found)
        halves = [[{"p": row.pop("p").float()} for row in rows] for rows in (found, wanted)]
        states.check(found, wanted)
        rounded.check(*halves)
        for p, q in zip(mine, single, strict=True):  # both go on from the same point
            q.data.copy_(p.detach())


# torch's SparseAdam, Adafactor and Muon take no complex parameters
COMPLEX = [
    s
    for s in PRECISE
    if s.made_by.source == "torch" and s.rule not in ("sparse_adam", "adafactor", "muon")
]


@every_backend
@pytest.mark.parametrize("setting", COMPLEX, ids=str)
def test_complex_as_torch(setting, backend):
    """A complex number is two real ones, in torch and here; the CPU's loop leaves it to foreach."""
    mine, reference = ([drawn((4, 3), torch.complex64, 1).requires_grad_()] for _ in range(2))
    ours = made(setting, mine, backend)
    theirs = setting.made_by.oracle(reference, **setting.hyper)
    compare = Peak(tolerance(torch.float32), reference)
    for t in range(STEPS):
        for p in (*mine, *reference):
            p.grad = drawn((4, 3), torch.complex64, 50 + t)
        ours.step()
        theirs.step()
        ours_now, theirs_now = values(ours, mine), values(theirs, reference)
        shared = theirs_now[0].keys()
        assert shared == ours_now[0].keys()
        numbers = [k for k in shared if k != "p" and not ours_now[0][k].dim()]
        for found in (ours_now, theirs_now):  # ours are kept in float64, torch's in float32
            found[0].update({k: found[0][k].float() for k in numbers})
        compare.check(ours_now, theirs_now)


# which parameters step


def has_gradient(k: int, t: int) -> bool:
    """The first twelve tensors begin one after the other, the rest at once; half of them pause."""
    return t >= (k if k < 12 else 0) and not (k % 2 and t % 3 == 1)


@every_backend
@each([s for s in PRECISE if s.rule not in SPANNING])  # those have one estimate for all
def test_each_parameter_has_its_own_count(setting, backend):
    """One optimizer of many tensors does what many optimizers of one tensor do."""
    together, alone = ([drawn((3, 2), torch.float64, k).requires_grad_() for k in range(14)]
                       for _ in range(2))  # fmt: skip
    ours = made(setting, together, backend)
    singles = [made(setting, [p], "eager") for p in alone]
    compare = Peak(1e-12, alone)
    for t in range(16):
        for k, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = drawn((3, 2), torch.float64, 100 * t + k) if has_gradient(k, t) else None
            q.grad = None if p.grad is None else p.grad.clone()
        ours.step()
        for q, single in zip(alone, singles, strict=True):
            if q.grad is not None:
                single.step()
        mine = values(ours, together)
        theirs = [values(o, [p])[0] for o, p in zip(singles, alone, strict=True)]
        for k in range(14):  # a count may stand ready before the first gradient, a state may not
            if len(theirs[k]) == 1:
                assert not any(v.dim() for key, v in mine[k].items() if key != "p")
                mine[k] = {"p": mine[k]["p"]}
        compare.check(mine, theirs)
    if "step" in theirs[0]:
        assert len({float(x["step"]) for x in theirs}) >= 10


@every_backend
def test_no_gradient_at_all_is_no_step(backend):
    p = torch.ones(3, requires_grad=True)
    optimizer = steepest.AdamW([p], backend=backend)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3))


# the same bits


LOOPS = [s for s in PLAIN if s.rule in ("adam", "nadam", "adabelief", "rprop", "adabound", "asgd")]


def stepped(setting: Setting, params: list[Tensor], grads: list[list[Tensor]], backend: str) -> Any:
    optimizer = made(setting, params, backend)
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        optimizer.step()
    return optimizer


@settings(max_examples=25, deadline=None)
@given(setting=st.sampled_from(LOOPS), n=st.integers(2, 3000), data=st.data())
def test_a_tensor_cut_in_pieces_gives_the_same_bits(setting, n, data):
    """Vector lanes and their remainders compute alike, so where a tensor ends does not show."""
    cuts = data.draw(st.lists(st.integers(0, n), max_size=5).map(sorted))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    start = drawn((n,), torch.float32, 1)
    grads = [drawn((n,), torch.float32, 2 + t) for t in range(3)]
    whole = [start.clone().requires_grad_()]
    pieces = [x.clone().requires_grad_() for x in start.split(sizes)]
    one = stepped(setting, whole, [[g] for g in grads], "cpu")
    many = stepped(setting, pieces, [list(g.split(sizes)) for g in grads], "cpu")
    assert torch.equal(torch.cat([p.detach() for p in pieces]), whole[0].detach())
    for key, value in one.state[whole[0]].items():
        if value.dim():
            assert torch.equal(torch.cat([many.state[p][key] for p in pieces]), value)


@settings(max_examples=25, deadline=None)
@given(
    setting=st.sampled_from(LOOPS),
    backend=st.sampled_from(BACKENDS),
    order=st.permutations(range(6)),
)
def test_the_order_of_parameters_does_not_matter(setting, backend, order):
    shapes = [(), (1,), (17,), (4, 5), (300,), (2, 3, 3)]
    first = [drawn(s, torch.float32, k).requires_grad_() for k, s in enumerate(shapes)]
    second = [p.detach().clone().requires_grad_() for p in first]
    grads = [[drawn(s, torch.float32, 10 * t + k) for k, s in enumerate(shapes)] for t in range(3)]
    stepped(setting, first, grads, backend)
    stepped(
        setting, [second[k] for k in order], [[row[k] for k in order] for row in grads], backend
    )
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


@pytest.mark.parametrize("setting", LOOPS, ids=[s.rule for s in LOOPS])
def test_the_number_of_threads_does_not_matter(setting):
    sizes = [3_000_000, 1000]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        random = torch.Generator().manual_seed(3)
        params = [torch.randn(n, generator=random).requires_grad_() for n in sizes]
        grads = [[torch.randn(n, generator=random) for n in sizes] for _ in range(2)]
        assert threads.wanted(sum(sizes), 10) == count
        optimizer = stepped(setting, params, grads, "cpu")
        found.append(values(optimizer, params))
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


# laws


def scaled_run(setting: Setting, backend: str, factor: float, start: float, **more: Any) -> Tensor:
    p = (start * drawn((50,), torch.float64, 1)).requires_grad_()
    grads = [[factor * drawn((50,), torch.float64, 2 + t)] for t in range(STEPS)]
    optimizer = made(setting, [p], backend, **more)
    for (g,) in grads:
        p.grad = g
        optimizer.step()
    return p.detach()


INVARIANT = {
    "adam": {"eps": 0.0}, "adamw": {"eps": 0.0}, "amsgrad": {"eps": 0.0}, "nadam": {"eps": 0.0},
    "adamax": {"eps": 0.0}, "rmsprop": {"eps": 0.0}, "adagrad": {"eps": 0.0}, "rprop": {},
    "eadam": {"eps": 0.0}, "adabelief": {"eps": 0.0, "rectify": False},
}  # fmt: skip


@every_backend
@pytest.mark.parametrize("setting", [s for s in PLAIN if s.rule in INVARIANT], ids=lambda s: s.rule)
@settings(max_examples=5, deadline=None)
@given(power=st.integers(-40, 40))
def test_without_eps_the_scale_of_the_gradient_does_not_matter(setting, backend, power):
    more = INVARIANT[setting.rule]
    one = scaled_run(setting, backend, 1.0, 1.0, **more)
    assert torch.equal(scaled_run(setting, backend, 2.0**power, 1.0, **more), one)


LINEAR = ("sgd", "momentum", "nesterov", "classical_momentum", "classical_nesterov", "asgd")


@every_backend
@pytest.mark.parametrize("setting", [s for s in PRECISE if s.rule in LINEAR], ids=str)
@settings(max_examples=5, deadline=None)
@given(power=st.integers(-40, 40))
def test_unscaled_methods_are_linear(setting, backend, power):
    factor = 2.0**power
    one = scaled_run(setting, backend, 1.0, 1.0)
    assert torch.equal(scaled_run(setting, backend, factor, factor), factor * one)


@every_backend
@each([s for s in PRECISE if s.rule != "muon"])  # torch's has no maximize
def test_methods_are_odd(setting, backend):
    """Mirror parameters and gradients, and the path is mirrored; ascent is descent on -g."""
    one = scaled_run(setting, backend, 1.0, 1.0)
    assert torch.equal(scaled_run(setting, backend, -1.0, -1.0), -one)
    other = not setting.hyper.get("maximize", False)
    assert torch.allclose(
        scaled_run(setting, backend, -1.0, 1.0, maximize=other), one, rtol=1e-13, atol=1e-13
    )


# what a step costs, in calls


def counting(calls: Counter[str], name: str) -> Callable[..., Any]:
    plain = getattr(torch, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return plain(*args, **kwargs)

    return call


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """The calls of torch._foreach_* functions in the block, by name."""
    calls: Counter[str] = Counter()
    patch = pytest.MonkeyPatch()
    for name in [n for n in dir(torch) if n.startswith("_foreach_")]:
        patch.setattr(torch, name, counting(calls, name))
    try:
        yield calls
    finally:
        patch.undo()


@each([s for s in PRECISE if s.rule not in WHOLE])  # those run as they are written
def test_the_number_of_foreach_calls_does_not_depend_on_the_number_of_tensors(setting):
    found = []
    for n in (2, 50):
        params = [drawn((3,), torch.float32, k).requires_grad_() for k in range(n)]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = made(setting, params, "foreach")
        rows = []
        for _ in range(7):
            with counted() as calls:
                optimizer.step()
            rows.append(calls)
        found.append(rows)
    assert found[0] == found[1]
    assert all(0 < calls.total() <= 30 for calls in found[0])


@every_backend
def test_other_backends_make_no_foreach_calls(backend):
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = steepest.Adam([p], backend=backend)
    with counted() as calls:
        optimizer.step()
    assert (calls.total() > 0) == (backend == "foreach")


# loaded states


@every_backend
@pytest.mark.parametrize(
    ("dtype", "saved"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
    ids=["bfloat16-float32", "float32-float64"],
)
def test_a_loaded_state_keeps_the_dtype_it_was_saved_in(dtype, saved, backend):
    """torch casts it to the parameter's: a float32 average under bfloat16 would lose its digits."""
    exact = [drawn((40,), saved, 1).requires_grad_()]
    grads = [drawn((40,), saved, 2 + t) for t in range(4)]
    source = stepped(PLAIN_ADAM, exact, [[g] for g in grads[:3]], "eager")
    checkpoint = copy.deepcopy(source.state_dict())
    p = exact[0].detach().to(dtype).requires_grad_()
    loaded = steepest.Adam([p], backend=backend)
    loaded.load_state_dict(checkpoint)
    for key in ("exp_avg", "exp_avg_sq"):
        assert loaded.state[p][key].dtype is saved
        assert torch.equal(loaded.state[p][key], source.state[exact[0]][key])
    exact[0].grad, p.grad = grads[3], grads[3].to(dtype)
    source.step()
    loaded.step()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(p.detach().to(saved), exact[0].detach(), rtol=2 * eps, atol=2 * eps)


PLAIN_ADAM = next(s for s in PLAIN if s.rule == "adam")


def test_parameters_of_two_devices_and_dtypes_are_stepped_apart():
    """The meta device stands for a second one: it has shapes and no numbers."""
    shapes = [("cpu", torch.float32), ("meta", torch.float32), ("cpu", torch.float64),
              ("meta", torch.bfloat16), ("cpu", torch.bfloat16)]  # fmt: skip
    params = [torch.nn.Parameter(torch.ones(3, device=d, dtype=t)) for d, t in shapes]
    made = steepest.AdaBelief(params, lr=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        made.step()
    for p, (device, _) in zip(params, shapes, strict=True):
        assert made.state[p]["exp_avg"].device.type == device
        assert made.state[p]["step"] == 2
        assert device == "meta" or (p < 1).all()


@every_backend
@pytest.mark.parametrize("sparse", [False, True])
def test_a_rule_without_state_makes_no_entry_in_the_state(backend, sparse):
    """A checkpoint of shards is refused where one process has entries that others lack."""
    params = [torch.ones(3, 2), torch.ones(()), torch.ones(0, 4)]
    optimizer = steepest.SGD(params, lr=0.25, backend=backend)
    for p in params:
        p.grad = torch.ones_like(p)
    if sparse:
        params[0].grad = params[0].grad.to_sparse(1)
    optimizer.step()
    optimizer.step()
    assert dict(optimizer.state) == {}
    assert torch.equal(params[0], torch.full((3, 2), 0.5))
