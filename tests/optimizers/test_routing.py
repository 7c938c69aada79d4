"""Groups of one optimizer that step by different rules."""

import pytest
import torch
from torch import nn

import steepest


def params(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(n)]


def stepped(optimizers, ps, steps=5):
    generator = torch.Generator().manual_seed(9)
    for _ in range(steps):
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator)
        for each in optimizers:
            each.step()
    return [p.detach() for p in ps]


@pytest.mark.parametrize("backend", [None, "foreach", "eager"])
def test_a_group_with_a_rule_of_its_own_is_that_optimizer(backend):
    ps = params(3)
    routed = steepest.AdaBelief(
        [{"params": ps[0]}, {"params": ps[1], "rule": "momentum", "lr": 0.1},
         {"params": ps[2], "rule": "RMSprop", "centered": True, "weight_decay": 0.1}],
        lr=0.01, weight_decay=0.5, backend=backend,
    )  # fmt: skip
    found = stepped([routed], ps)
    ps = params(3)
    apart = [
        steepest.AdaBelief([ps[0]], lr=0.01, weight_decay=0.5),
        steepest.optimizer("momentum", [ps[1]], lr=0.1),  # its rule's defaults for the rest
        torch.optim.RMSprop([ps[2]], centered=True, weight_decay=0.1),
    ]
    torch.testing.assert_close(found, stepped(apart, ps), rtol=1e-6, atol=1e-6)


def test_a_group_has_the_options_of_its_rule_alone():
    ps = params(2)
    made = steepest.AdaBelief([{"params": ps[0]}, {"params": ps[1], "rule": "SGD", "lr_scale": 2}])
    sgd = made.param_groups[1]
    assert sgd["rule"] == "SGD"
    assert sgd["lr_scale"] == 2
    assert "rectify" not in sgd
    assert {"momentum", "nesterov"} <= sgd.keys()


def test_a_routed_checkpoint_continues_bit_for_bit():
    def make(ps):
        return steepest.AdamW([{"params": ps[0]}, {"params": ps[1], "rule": "adabound"}], lr=0.01)

    ps = params(2)
    whole = stepped([make(ps)], ps, 10)
    ps = params(2)
    first = make(ps)
    generator = torch.Generator().manual_seed(9)

    def half(made):
        for _ in range(5):
            for p in ps:
                p.grad = torch.randn(p.shape, generator=generator)
            made.step()

    half(first)
    second = make(ps)
    second.load_state_dict(first.state_dict())
    half(second)
    assert all(map(torch.equal, whole, [p.detach() for p in ps]))


def test_a_group_added_later_may_bring_its_rule():
    ps = params(2)
    made = steepest.AdamW([ps[0]], lr=0.01)
    stepped([made], ps[:1])
    made.add_param_group({"params": ps[1], "rule": "sgd", "lr": 0.5})
    before = ps[1].detach().clone()
    ps[0].grad, ps[1].grad = None, torch.ones(4, 3)
    made.step()
    torch.testing.assert_close(ps[1].detach(), before - 0.5)


@pytest.mark.parametrize(
    ("group", "kind", "message"),
    [
        ({"rule": "adamm"}, ValueError, "did you mean 'adam"),
        ({"rule": 3}, TypeError, "expected a rule or its name"),
        ({"rule": "SGD", "lr": -1.0}, ValueError, "SGD: lr=-1.0 was given"),
        ({"rule": "SGD", "nesterov": True}, ValueError, "expected momentum > 0"),
    ],
)
def test_a_bad_rule_is_refused_before_the_group_is_added(group, kind, message):
    ps = params(2)
    made = steepest.AdamW([ps[0]])
    with pytest.raises(kind, match=message):
        made.add_param_group({"params": ps[1], **group})
    assert len(made.param_groups) == 1


def test_schedulers_move_every_group():
    ps = params(2)
    made = steepest.AdamW([{"params": ps[0]}, {"params": ps[1], "rule": "SGD", "lr": 1.0}], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)
    stepped([made], ps, 1)
    scheduler.step()
    assert [g["lr"] for g in made.param_groups] == [0.05, 0.5]


def test_param_groups_route_by_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    routes = [{"rule": "momentum", "where": "1.weight", "lr": 0.5}]
    made = steepest.AdamW(steepest.param_groups(model, weight_decay=0.0, rules=routes), lr=1e-3)
    before = model[1].weight.detach().clone()
    model(torch.ones(5, 4)).sum().backward()
    made.step()
    gradient = model[1].weight.grad
    torch.testing.assert_close(model[1].weight.detach(), before - 0.5 * gradient)
    assert set(made.state[model[1].weight]) == {"momentum_buffer"}
    assert set(made.state[model[0].weight]) == {"step", "exp_avg", "exp_avg_sq"}
