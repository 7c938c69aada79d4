"""SAM and Lookahead around any optimizer, against their papers and pytorch-optimizer."""

import copy
import io
import math
import pickle

import pytest
import pytorch_optimizer
import torch
from torch import nn

import steepest
from steepest.check import examine
from tests.docs.test_examples import assert_same

INNER = {
    "ours": lambda params, **o: steepest.AdamW(params, **{"lr": 0.02, **o}),
    "torch": lambda params, **o: torch.optim.AdamW(params, **{"lr": 0.02, **o}),
    "momentum": lambda params, **o: torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **o}),
    "foreign": lambda params, **o: pytorch_optimizer.AdaBelief(params, **{"lr": 0.02, **o}),
}
WRAPPERS = {
    "sam": lambda inner: steepest.SAM(inner, rho=0.1),
    "asam": lambda inner: steepest.SAM(inner, rho=0.5, adaptive=True),
    "lookahead": lambda inner: steepest.Lookahead(inner, k=4, alpha=0.3),
    "lookahead-sam": lambda inner: steepest.Lookahead(steepest.SAM(inner), k=4),
    "sam-lookahead": lambda inner: steepest.SAM(steepest.Lookahead(inner, k=4)),
    "lookahead-lookahead": lambda inner: steepest.Lookahead(steepest.Lookahead(inner, k=3), k=2),
}
inners = pytest.mark.parametrize("inner", INNER)
wrappers = pytest.mark.parametrize("wrapper", WRAPPERS)
X = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
Y = X.sin().sum(1, keepdim=True)


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def closure_of(model, optimizer, seen=None):
    def closure():
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        loss = (model(X.to(dtype)) - Y.to(dtype)).square().mean()
        loss.backward()
        if seen is not None:
            seen.append(loss.item())
        return loss

    return closure


def bits(model):
    return torch.cat([p.detach().flatten().view(torch.uint8) for p in model.parameters()])


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def deviation(a, b):
    return float((a - b).abs().max() / b.abs().max())


# papers


def sam_by_hand(model, inner, steps, rho, adaptive=False, eta=0.0):
    """Foret et al. equation 2, Kwon et al.'s ASAM, a tensor after the other."""
    params, optimizer = list(model.parameters()), inner(model.parameters())
    for _ in range(steps):
        closure_of(model, optimizer)()
        w = [p.detach().clone() for p in params]
        g = [p.grad.clone() for p in params]
        scale = [x.abs() + eta if adaptive else torch.ones_like(x) for x in w]
        norm = math.sqrt(sum(float(((t * d) ** 2).sum()) for t, d in zip(scale, g, strict=True)))
        with torch.no_grad():
            for p, t, d in zip(params, scale, g, strict=True):
                p += rho * t**2 * d / norm
        closure_of(model, optimizer)()
        with torch.no_grad():
            for p, x in zip(params, w, strict=True):
                p.copy_(x)
        optimizer.step()


@inners
@pytest.mark.parametrize(
    "options",
    [{"rho": 0.05}, {"rho": 0.5, "adaptive": True}, {"rho": 1.0, "adaptive": True, "eta": 0.3}],
)
def test_sam_follows_the_papers(inner, options):
    ours, theirs = network(), network()
    optimizer = steepest.SAM(INNER[inner](ours.parameters()), **options)
    for _ in range(50):
        optimizer.step(closure_of(ours, optimizer))
    eta = {"eta": 0.01} if options.get("adaptive") else {}
    sam_by_hand(theirs, INNER[inner], 50, **{**eta, **options})
    assert deviation(flat(ours), flat(theirs)) <= 1e-12
    plain = network()
    sam_by_hand(plain, INNER[inner], 50, rho=0.0)
    assert deviation(flat(ours), flat(plain)) > 1e-3


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_follows_pytorch_optimizer(adaptive):
    """It computes its norm in float32 whatever the parameters are, hence not 1e-12."""
    ours, theirs = network(), network()
    rho = 0.5 if adaptive else 0.05
    mine = steepest.SAM(INNER["momentum"](ours.parameters()), rho, adaptive, eta=0.0)
    other = pytorch_optimizer.SAM(
        theirs.parameters(), torch.optim.SGD, rho=rho, adaptive=adaptive, lr=0.05, momentum=0.9
    )
    for _ in range(50):
        mine.step(closure_of(ours, mine))
        closure = closure_of(theirs, other)
        closure()
        other.step(closure)
    assert deviation(flat(ours), flat(theirs)) <= 1e-6


def lookahead_by_hand(model, inner, steps, k, alpha):
    """Zhang et al. Algorithm 1: an outer and an inner loop."""
    params, optimizer = list(model.parameters()), inner(model.parameters())
    phi = [p.detach().clone() for p in params]
    for _ in range(steps // k):
        for _ in range(k):
            optimizer.step(closure_of(model, optimizer))
        with torch.no_grad():
            for j, p in enumerate(params):
                phi[j] = phi[j] + alpha * (p - phi[j])
                p.copy_(phi[j])


@inners
@pytest.mark.parametrize(("k", "alpha"), [(6, 0.5), (5, 0.8), (1, 0.2), (3, 1.0)])
def test_lookahead_follows_the_paper_and_pytorch_optimizer(inner, k, alpha):
    ours, theirs, second = network(), network(), network()
    mine = steepest.Lookahead(INNER[inner](ours.parameters()), k=k, alpha=alpha)
    other = INNER[inner](second.parameters())
    if alpha < 1:  # it takes no 1, which is the wrapped optimizer alone
        other = pytorch_optimizer.Lookahead(other, k=k, alpha=alpha)
    for _ in range(10 * k):
        mine.step(closure_of(ours, mine))
        other.step(closure_of(second, other))
    lookahead_by_hand(theirs, INNER[inner], 10 * k, k, alpha)
    assert deviation(flat(ours), flat(theirs)) <= 1e-12
    assert deviation(flat(ours), flat(second)) <= 1e-12


def test_the_defaults_are_the_papers():
    inner = steepest.AdamW(network().parameters())
    assert (steepest.SAM(inner).rho, steepest.SAM(inner).eta) == (0.05, 0.01)
    assert (steepest.Lookahead(inner).k, steepest.Lookahead(inner).alpha) == (6, 0.5)


def test_lbfgs_asks_for_the_gradient_as_often_as_it_likes():
    model, seen = network(), []
    optimizer = steepest.Lookahead(steepest.SAM(torch.optim.LBFGS(model.parameters())), k=2)
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer, seen))
    assert len(seen) > 20
    assert seen[-1] < 0.1 * seen[0]


# closures


def test_the_closure_is_called_twice_with_autograd_and_the_first_loss_is_returned():
    model, seen, places = network(), [], []
    optimizer = steepest.SAM(INNER["torch"](model.parameters()))
    inner = closure_of(model, optimizer, seen)

    def closure():
        assert torch.is_grad_enabled()
        places.append((flat(model), optimizer.perturbed))
        return inner()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == seen[0] < seen[1]
    assert [flag for _, flag in places] == [False, True]
    assert not optimizer.perturbed
    assert float((places[1][0] - places[0][0]).norm()) == pytest.approx(0.05, rel=1e-12)


def test_gradients_do_not_add_up_where_the_closure_leaves_them():
    ours, theirs = network(), network()
    for model, clears in ((ours, True), (theirs, False)):
        optimizer = steepest.SAM(INNER["momentum"](model.parameters()))
        for _ in range(5):
            optimizer.zero_grad()

            def closure(model=model, optimizer=optimizer, clears=clears):
                if clears:
                    optimizer.zero_grad()
                loss = (model(X) - Y).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
    assert torch.equal(bits(ours), bits(theirs))


def test_sam_without_a_closure_is_a_clear_error():
    model = network()
    optimizer = steepest.Lookahead(steepest.SAM(INNER["ours"](model.parameters())))
    before = bits(model)
    with pytest.raises(RuntimeError, match=r"SAM: step\(\) was called without a closure, .*twice"):
        optimizer.step()
    assert torch.equal(bits(model), before)


@inners
@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_parameters_come_back_when_a_closure_raises(inner, fails_at, error):
    model, calls = network(torch.float32), []
    optimizer = steepest.SAM(INNER[inner](model.parameters()))
    optimizer.step(closure_of(model, optimizer))
    before, state = bits(model), copy.deepcopy(optimizer.state_dict())

    def closure():
        calls.append(0)
        loss = closure_of(model, optimizer)()
        if len(calls) == fails_at:
            raise error("no")
        return loss

    with pytest.raises(error, match="no"):
        optimizer.step(closure)
    assert torch.equal(bits(model), before)
    assert not optimizer.perturbed
    assert_same(optimizer.state_dict(), state)


def test_the_first_pass_alone_keeps_its_batch_statistics():
    def train(sharp, keeps):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        inner = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer = steepest.SAM(inner, rho=1.0) if sharp else inner
        norms = [m for m in model if isinstance(m, nn.BatchNorm1d)]

        def closure():
            for m in norms if keeps else ():
                m.track_running_stats = not optimizer.perturbed
            return closure_of(model, optimizer)()

        optimizer.step(closure)
        model.eval()
        model(X)  # the layer has its statistics to use
        return norms[0]

    plain, kept, spoilt = train(False, False), train(True, True), train(True, False)
    assert torch.equal(plain.running_mean, kept.running_mean)
    assert torch.equal(plain.running_var, kept.running_var)
    assert (plain.num_batches_tracked, kept.num_batches_tracked) == (1, 1)
    assert spoilt.num_batches_tracked == 2
    assert not torch.allclose(plain.running_mean, spoilt.running_mean)


# odd gradients and parameters


def step_on(optimizer, *grads):
    """A step on made-up gradients, the same in both passes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def closure():
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        return 1.0

    return optimizer.step(closure)


def test_zero_missing_and_no_gradients():
    a, b = (nn.Parameter(torch.ones(2)) for _ in "ab")
    optimizer = steepest.Lookahead(steepest.SAM(torch.optim.SGD([a, b], lr=0.1), rho=3.0), k=2)
    step_on(optimizer, torch.zeros(2), None)
    step_on(optimizer, None, None)
    assert torch.equal(torch.stack([a, b]), torch.ones(2, 2))
    step_on(optimizer, torch.ones(2), torch.zeros(2))
    assert torch.equal(torch.stack([a, b]), torch.tensor([[0.9, 0.9], [1, 1]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("adaptive", [False, True])
def test_what_is_not_finite_stays_where_it_is(bad, adaptive):
    p, places = nn.Parameter(torch.ones(3)), []
    optimizer = steepest.SAM(torch.optim.SGD([p], lr=0.1), adaptive=adaptive)

    def closure():
        places.append(p.detach().clone())
        p.grad = torch.tensor([1.0, bad, 2.0])

    optimizer.step(closure)
    assert torch.equal(places[0], places[1])
    assert p[0].item() == pytest.approx(0.9)
    assert not p[1].isfinite()


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30, 3e38])
def test_gradients_at_the_ends_of_float32(size):
    p, places = nn.Parameter(torch.ones(3)), []
    optimizer = steepest.SAM(torch.optim.SGD([p], lr=0.0))

    def closure():
        places.append(p.detach().clone())
        p.grad = torch.full((3,), size)

    optimizer.step(closure)
    assert places[1].isfinite().all()
    assert (places[1] - 1).norm() <= 0.0501
    assert torch.equal(p, torch.ones(3))


def test_a_radius_beyond_the_gradient_fits_float32():
    p = nn.Parameter(torch.ones(3))
    optimizer = steepest.SAM(torch.optim.SGD([p], lr=0.0), rho=1e30)
    step_on(optimizer, torch.full((3,), 1e-15))
    assert torch.equal(p, torch.ones(3))


def test_an_optimizer_that_calls_its_closure_without_autograd():
    class Careless(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            loss = closure()
            super().step()
            return loss

    model, seen = network(), []
    optimizer = steepest.SAM(Careless(model.parameters(), lr=0.1))
    optimizer.step(closure_of(model, optimizer, seen))
    assert len(seen) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 6e4])
def test_16_bit_gradients_have_a_norm_of_32(dtype, size):
    p, places = nn.Parameter(torch.zeros(400, dtype=dtype)), []
    optimizer = steepest.SAM(torch.optim.SGD([p], lr=0.0))

    def closure():
        places.append(p.detach().float())
        p.grad = torch.full_like(p, size)

    optimizer.step(closure)
    assert float(places[1].norm()) == pytest.approx(0.05, rel=0.01)


def test_a_sparse_gradient_is_refused_and_nothing_changes():
    layer = nn.Embedding(5, 2, sparse=True)
    optimizer = steepest.SAM(torch.optim.SGD(layer.parameters(), lr=0.1))
    before = bits(layer)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.tensor([1, 1, 3])).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="SAM: a sparse gradient was given, expected dense"):
        optimizer.step(closure)
    assert torch.equal(bits(layer), before)
    steepest.Lookahead(torch.optim.SGD(layer.parameters(), lr=0.1), k=1).step(closure)
    assert not torch.equal(bits(layer), before)


def mixed():
    g = torch.Generator().manual_seed(5)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    params = [nn.Parameter(torch.randn(3, 2, generator=g).to(dtype)) for dtype in dtypes]
    params.append(nn.Parameter(torch.randn(3, 2, generator=g, dtype=torch.complex64)))
    params.append(nn.Parameter(torch.randn(2, 3, generator=g).t()))  # strided
    params.append(nn.Parameter(torch.randn(0, 2)))
    params.append(nn.Parameter(torch.tensor(0.5)))
    return params


@pytest.mark.parametrize("inner", ["ours", "torch"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_several_dtypes_and_groups_have_one_norm(inner, adaptive):
    params, places = mixed(), []
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.1}]
    optimizer = steepest.SAM(INNER[inner](groups), rho=0.5, adaptive=adaptive)
    before = [p.detach().clone() for p in params]

    def real(x):
        x = x.detach()
        return (torch.view_as_real(x) if x.is_complex() else x).double()

    def closure():
        places.append([real(p).clone() for p in params])
        for p in params:
            p.grad = 2 * p.detach()

    optimizer.step(closure)
    scale = [real(w).abs() + 0.01 if adaptive else torch.ones(()) for w in before]
    g = [2 * real(w) * t for w, t in zip(before, scale, strict=True)]
    norm = math.sqrt(sum(float(x.square().sum()) for x in g))
    for w, t, x, there in zip(before, scale, g, places[1], strict=True):
        coarse = 1e-2 if w.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(there, real(w) + 0.5 * t * x / norm, rtol=coarse, atol=1e-6)
    assert not any(torch.equal(p, w) for p, w in zip(params, before, strict=True) if w.numel())


def test_lookahead_over_several_dtypes():
    params = mixed()
    optimizer = steepest.Lookahead(INNER["torch"](params), k=2, alpha=0.25)
    before = [p.detach().clone() for p in params]
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    other = INNER["torch"](alone)
    for _ in range(2):
        for p, q in zip(params, alone, strict=True):
            p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
        other.step()
    for p, q, w in zip(params, alone, before, strict=True):
        coarse = {"rtol": 1e-2, "atol": 1e-2} if w.dtype == torch.bfloat16 else {}
        torch.testing.assert_close(p.detach(), (w + 0.25 * (q - w)).detach(), **coarse)


@wrappers
def test_a_tied_parameter_moves_once(wrapper):
    def train(twice):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(3, dtype=torch.float64))
        with pytest.warns(UserWarning, match="twice") if twice else pytest.MonkeyPatch.context():
            inner = steepest.AdamW([p, p] if twice else [p], lr=0.1)
        optimizer = WRAPPERS[wrapper](inner)

        def closure():
            p.grad = (p.detach() - 1) ** 3

        for _ in range(9):
            optimizer.step(closure)
        return p, optimizer.state_dict()

    (once, _), (twice, saved) = train(False), train(True)
    assert torch.equal(once, twice)
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    with pytest.warns(UserWarning, match="twice"):
        inner = steepest.AdamW([p, p])
    WRAPPERS[wrapper](inner).load_state_dict(saved)


# what a torch.optim.Optimizer can do


@inners
@wrappers
def test_groups_schedulers_and_hooks_are_shared(inner, wrapper):
    model, calls = network(), []
    wrapped = INNER[inner](model[0].parameters())
    optimizer = WRAPPERS[wrapper](wrapped)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    first = optimizer.param_groups[0]["lr"]
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step(closure_of(model, optimizer))
    scheduler.step()
    assert wrapped.param_groups[0]["lr"] == first / 2
    optimizer.param_groups[0]["lr"] = 0.0
    before = flat(model)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.1})
    assert len(wrapped.param_groups) == 2
    for _ in range(6):
        optimizer.step(closure_of(model, optimizer))
    moved = flat(model) != before
    assert not moved[:4].any() or wrapper.startswith("look") or wrapper.endswith("lookahead")
    assert moved[-5:].all()
    assert calls == ["pre", "post"] * 7
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    momentum = "momentum" if inner == "momentum" else "betas"
    assert momentum in optimizer.defaults  # what OneCycleLR asks for
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)


@wrappers
def test_repr_names_the_options_of_all(wrapper):
    text = repr(WRAPPERS[wrapper](INNER["ours"](network().parameters())))
    assert "AdamW (" in text
    assert "lr: 0.02" in text
    assert ("rho=" in text) == ("sam" in wrapper)
    assert ("alpha=" in text) == ("lookahead" in wrapper)


@wrappers
@pytest.mark.parametrize("inner", ["ours", "torch", "momentum"])  # the foreign one has no copies
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_alone(inner, wrapper, way):
    model = network()
    optimizer = WRAPPERS[wrapper](INNER[inner](model.parameters()))
    for _ in range(6):
        optimizer.step(closure_of(model, optimizer))
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    before = bits(model)
    for _ in range(7):
        other.step(closure_of(twin, other))
    assert torch.equal(bits(model), before)
    for _ in range(7):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(bits(model), bits(twin))


def file_and_back(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@inners
@wrappers
@pytest.mark.parametrize("at", [48, 50])
def test_resume_is_exact(inner, wrapper, at):
    def begin():
        model = network(torch.float32)
        optimizer = WRAPPERS[wrapper](INNER[inner](model.parameters()))
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)

    def run(parts, steps):
        model, optimizer, scheduler = parts
        for _ in range(steps):
            optimizer.step(closure_of(model, optimizer))
            scheduler.step()

    whole = begin()
    run(whole, at)
    saved = file_and_back([part.state_dict() for part in whole])
    assert ("state" in saved[1]) & ("param_groups" in saved[1])
    again = begin()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    run(whole, 100 - at)
    kept = copy.deepcopy(saved[1])
    run(again, 100 - at)
    assert torch.equal(bits(whole[0]), bits(again[0]))
    assert_same(saved[1]["wrappers"], kept["wrappers"])
    if inner == "ours":  # torch's load shares memory with what it loads
        assert_same(saved[1], kept)


def test_parameters_are_matched_by_name_where_the_wrapped_optimizer_does_so():
    model = network()
    names = dict(model.named_parameters())
    optimizer = steepest.Lookahead(steepest.AdamW(names.items(), lr=0.02), k=4)
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    saved = optimizer.state_dict()
    twin = copy.deepcopy(model)
    other = steepest.Lookahead(steepest.AdamW(reversed([*twin.named_parameters()]), lr=0.02), k=4)
    other.load_state_dict(saved)
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer))
        other.step(closure_of(twin, other))
    assert torch.equal(bits(model), bits(twin))


def test_options_come_from_the_checkpoint():
    inner = INNER["ours"]
    saved = steepest.Lookahead(
        steepest.SAM(inner(network().parameters()), 0.3, True, 0.2), k=9, alpha=0.7
    ).state_dict()
    other = steepest.Lookahead(steepest.SAM(inner(network().parameters())))
    other.load_state_dict(saved)
    assert (other.k, other.alpha) == (9, 0.7)
    assert (other.optimizer.rho, other.optimizer.adaptive, other.optimizer.eta) == (0.3, True, 0.2)


def damaged():
    """Name -> (what is done to the checkpoint of a Lookahead(SAM(AdamW)), what is said)."""

    def layer(**changes):
        def change(saved):
            saved["wrappers"][-1].update(changes)

        return change

    def slow(key, value):
        def change(saved):
            saved["wrappers"][-1]["slow"][key] = value

        return change

    def pop(key):
        return lambda saved: saved.pop(key)

    return {
        "plain": (pop("wrappers"), "the checkpoint is of no wrapper, expected Look"),
        "sam": (lambda s: s["wrappers"].pop(), "the checkpoint is of a SAM, expected "),
        "bare": (lambda s: s["wrappers"].pop(0), "SAM: the checkpoint is of no wrapper"),
        "text": (lambda s: s.update(wrappers="SAM"), "'wrappers' of the checkpoint is not a"),
        "state": (pop("state"), "expected an optimizer's state_dict"),
        "groups": (lambda s: s["param_groups"].clear(), "the checkpoint has 0 groups, exp"),
        "size": (
            lambda s: s["param_groups"][0]["params"].pop(),
            "group 0 of the checkpoint has 3 parameters",
        ),
        "k": (layer(k=0), r"k=0 was given in the checkpoint, expected a whole number in \[1, inf"),
        "alpha": (layer(alpha=None), "alpha=None was given in the checkpoint, expected a number"),
        "count": (layer(count=4), r"count is 4, expected a whole number in \[0, 4\)"),
        "flag": (layer(count=True), "count is True"),
        "none": (layer(slow=None), "slow weights do not fit its 4 parameters"),
        "lacks": (layer(slow={}), "slow weights do not fit its 4 parameters after 2 steps"),
        "begun": (layer(count=0), "slow weights do not fit its 0 parameters after 0 steps"),
        "shape": (slow(0, torch.ones(7)), r"slow weight of parameter 0 of group 0 is .*\(7,\)"),
        "number": (slow(1, 3.0), "slow weight of parameter 1 of group 0 is 3.0, expected"),
        "sparse": (slow(0, torch.eye(4).to_sparse()), "slow weight of parameter 0"),
        "complex": (slow(0, torch.ones(4, 3) * 1j), "slow weight of parameter 0"),
    }


@pytest.mark.parametrize("inner", ["ours", "torch"])
@pytest.mark.parametrize("name", damaged())
def test_a_damaged_checkpoint_changes_nothing(inner, name):
    def begin():
        model = network()
        return model, steepest.Lookahead(steepest.SAM(INNER[inner](model.parameters())), k=4)

    model, optimizer = begin()
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    saved = copy.deepcopy(optimizer.state_dict())
    change, said = damaged()[name]
    change(saved)
    other, mine = begin()
    mine.step(closure_of(other, mine))
    before, state = bits(other), copy.deepcopy(mine.state_dict())
    with pytest.raises(ValueError, match=said) as caught:
        mine.load_state_dict(saved)
    assert str(caught.value).count(". ") == 0
    assert torch.equal(bits(other), before)
    assert_same(mine.state_dict(), state)


@wrappers
def test_a_checkpoint_of_a_wrapper_is_none_of_anything_else(wrapper):
    model = network()
    optimizer = WRAPPERS[wrapper](INNER["ours"](model.parameters()))
    with pytest.raises(ValueError, match="NoneType was given, expected an optimizer's state_dict"):
        optimizer.load_state_dict(None)
    with pytest.raises(ValueError, match="no wrapper"):
        optimizer.load_state_dict(INNER["ours"](model.parameters()).state_dict())
    with pytest.raises(ValueError, match=r"or into \.optimizer, which is inside"):
        optimizer.load_state_dict(INNER["torch"](model.parameters()).state_dict())


def test_hooks_of_checkpoints():
    model, calls = network(), []
    optimizer = steepest.SAM(INNER["ours"](model.parameters()))
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "more": 1})
    saved = optimizer.state_dict()
    assert saved.pop("more") == 1

    def changed(o, saved):
        return {**saved, "wrappers": [{**saved["wrappers"][0], "rho": 0.75}]}

    optimizer.register_load_state_dict_pre_hook(changed)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append(o.rho))
    optimizer.load_state_dict(saved)
    assert calls == ["saving", 0.75]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda o: steepest.SAM(torch.optim.AdamW), TypeError, "SAM: the class AdamW was given, "
         r"expected an optimizer object; write SAM\(steepest.AdamW\(model"),
        (lambda o: steepest.Lookahead([torch.ones(2)]), TypeError, "Lookahead: a list was given"),
        (lambda o: steepest.SAM(o, rho=-0.1), ValueError, r"SAM: rho=-0.1 was given, expected a "),
        (lambda o: steepest.SAM(o, rho=math.nan), ValueError, "rho=nan was given"),
        (lambda o: steepest.SAM(o, rho="0.1"), ValueError, "rho='0.1' was given"),
        (lambda o: steepest.SAM(o, rho=math.inf), ValueError, "rho=inf was given"),
        (lambda o: steepest.SAM(o, 0.1, 2), ValueError, "adaptive=2 .* True or False$"),
        (lambda o: steepest.SAM(o, eta=None), ValueError, "eta=None was given"),
        (lambda o: steepest.Lookahead(o, k=0), ValueError, "k=0 was given, expected a whole"),
        (lambda o: steepest.Lookahead(o, k=2.5), ValueError, "k=2.5 was given, expected a whole"),
        (lambda o: steepest.Lookahead(o, k=True), ValueError, "k=True was given"),
        (lambda o: steepest.Lookahead(o, alpha=0), ValueError, r"alpha=0 .* number in \(0, 1\]"),
        (lambda o: steepest.Lookahead(o, alpha=1.5), ValueError, "alpha=1.5 was given"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(make, error, said):
    with pytest.raises(error, match=said):
        make(INNER["ours"](network().parameters()))


# slow weights


def test_slow_weights_are_lent_and_given_back():
    model = network()
    optimizer = steepest.Lookahead(INNER["torch"](model.parameters()), k=3)
    start = bits(model)
    with optimizer.slow():  # before the first step they are the parameters
        assert torch.equal(bits(model), start)
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    fast = bits(model)
    assert not torch.equal(fast, start)
    with optimizer.slow():
        with optimizer.slow():
            assert torch.equal(bits(model), start)
        assert torch.equal(bits(model), start)
        with pytest.raises(RuntimeError, match=r"step\(\) was called inside of slow\(\)"):
            optimizer.step(closure_of(model, optimizer))
    assert torch.equal(bits(model), fast)
    with pytest.raises(ZeroDivisionError), optimizer.slow():
        1 / 0  # noqa: B018
    assert torch.equal(bits(model), fast)
    optimizer.step(closure_of(model, optimizer))
    synchronised = bits(model)
    with optimizer.slow():
        assert torch.equal(bits(model), synchronised)


def test_a_model_loaded_after_the_optimizer_was_made_is_where_a_cycle_begins():
    trained, model = network(), network()
    with torch.no_grad():
        for p in trained.parameters():
            p += 3
    optimizer = steepest.Lookahead(torch.optim.SGD(model.parameters(), lr=0.0), k=2)
    model.load_state_dict(trained.state_dict())
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer))
    assert torch.equal(bits(model), bits(trained))


def test_a_group_added_within_a_cycle_goes_back_to_where_it_was_then():
    a, b = (nn.Parameter(torch.zeros(1)) for _ in "ab")
    optimizer = steepest.Lookahead(torch.optim.SGD([a], lr=1.0), k=3, alpha=0.5)
    a.grad, b.grad = -torch.ones(1), -torch.ones(1)
    optimizer.step()
    with torch.no_grad():
        b += 10
    optimizer.add_param_group({"params": [b]})
    saved = optimizer.state_dict()  # before its first step, in the middle of a cycle
    optimizer.load_state_dict(saved)
    optimizer.step()
    optimizer.step()
    assert (a.item(), b.item()) == (1.5, 11.0)


# mixed precision, devices


def test_lookahead_does_not_count_what_a_scaler_leaves_out():
    p = nn.Parameter(torch.zeros(1))
    optimizer = steepest.Lookahead(torch.optim.SGD([p], lr=1.0), k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for g in (1.0, math.inf, 1.0):
        p.grad = torch.tensor([g]) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert p.item() == -1.0  # two steps of -1, half of the way


def test_a_scaler_does_not_take_sam():
    p = nn.Parameter(torch.zeros(1))
    optimizer = steepest.SAM(torch.optim.SGD([p], lr=1.0))
    scaler = torch.amp.GradScaler("cpu")
    p.grad = scaler.scale(torch.ones(1))
    with pytest.raises(
        RuntimeError, match="GradScaler does not pass a closure on, so use bfloat16"
    ):
        scaler.step(optimizer)
    assert p.item() == 0


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch finds no accelerator")
@wrappers
def test_two_devices_step_as_one(wrapper):
    def train(*devices):
        g = torch.Generator().manual_seed(2)
        params = [nn.Parameter(torch.randn(5, generator=g).double().to(d)) for d in devices]
        optimizer = WRAPPERS[wrapper](torch.optim.AdamW(params, lr=0.1))

        def closure():
            for p in params:
                p.grad = (p.detach() - 1) ** 3

        for _ in range(9):
            optimizer.step(closure)
        optimizer.load_state_dict(optimizer.state_dict())
        for _ in range(9):
            optimizer.step(closure)
        return torch.cat([p.detach().cpu() for p in params])

    other = torch.accelerator.current_accelerator().type
    torch.testing.assert_close(train("cpu", other), train("cpu", "cpu"), rtol=1e-12, atol=1e-12)


# the doctor


class AroundAdamW:
    inner = steepest.AdamW

    def __init__(self, params, lr=1e-3, weight_decay=0.01):
        super().__init__(self.inner(params, lr=lr, weight_decay=weight_decay))


class SharpAdamW(AroundAdamW, steepest.SAM):
    pass


class AheadAdamW(AroundAdamW, steepest.Lookahead):
    pass


# what a cycle of several parameters cannot have, and what an optimizer inside of another does
KNOWN = {"late-gradient", "group-added-later", "hook-global-step-pre", "hook-global-step-post"}


@pytest.mark.parametrize(("kind", "least"), [(SharpAdamW, 19), (AheadAdamW, 100)])
def test_the_doctor_finds_nothing_else(kind, least):
    found = examine(kind)
    failed = {f.name: f.detail for f in found if f.outcome == "fail"}
    assert failed.keys() == (KNOWN if kind is AheadAdamW else set()), failed
    assert sum(f.outcome == "pass" for f in found) >= least
