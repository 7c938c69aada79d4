"""Construction: which arguments are accepted, which are refused, and with which errors."""

from __future__ import annotations

import ast
from typing import Any

import torch

from ..examination import examination
from ..needs import argument, number, plain

OPTIMIZER = "torch.optim.Optimizer(params, defaults): "


@examination("params-tensor-refused", OPTIMIZER + "params is an iterable of Tensors or dicts")
def params_tensor_refused(make: Any) -> None:
    """A tensor instead of a list of parameters raises TypeError."""
    try:
        make(torch.nn.Parameter(torch.ones(2, 2)))
    except TypeError:
        pass
    else:
        raise AssertionError("a tensor was accepted as params, expected a TypeError")


@examination("params-empty-refused", OPTIMIZER + "an empty parameter list is an error")
def params_empty_refused(make: Any) -> None:
    """An empty list of parameters raises ValueError."""
    try:
        make([])
    except ValueError:
        pass
    else:
        raise AssertionError("an empty list was accepted as params, expected a ValueError")


@examination("params-other-refused", "torch.optim.Optimizer.add_param_group: only Tensors")
def params_other_refused(make: Any) -> None:
    """A number among the parameters raises TypeError."""
    try:
        make([torch.nn.Parameter(torch.ones(2, 2)), 1.0])
    except TypeError:
        pass
    else:
        raise AssertionError("params=[Parameter, 1.0] was accepted, expected a TypeError")


@examination("params-set-refused", OPTIMIZER + "params need a deterministic order; sets have none")
def params_set_refused(make: Any) -> None:
    """A set of parameters raises TypeError, because a checkpoint needs an order."""
    try:
        make([{"params": {torch.nn.Parameter(torch.ones(2, 2))}}])
    except TypeError:
        pass
    else:
        raise AssertionError("a set was accepted as params, expected a TypeError")


@examination("non-leaf-refused", "torch.optim.Optimizer.add_param_group: can't optimize a non-leaf")
def non_leaf_refused(make: Any) -> None:
    """A tensor that autograd computed raises ValueError."""
    try:
        make([torch.nn.Parameter(torch.ones(2, 2)) * 2])
    except ValueError:
        pass
    else:
        raise AssertionError("a non-leaf tensor was accepted, expected a ValueError")


@examination(
    "two-groups-refused", "torch.optim.Optimizer.add_param_group: groups share no parameter"
)
def two_groups_refused(make: Any) -> None:
    """A parameter in two groups raises ValueError."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    try:
        make([{"params": [p]}, {"params": [p]}])
    except ValueError:
        pass
    else:
        raise AssertionError("a parameter was accepted in two groups, expected a ValueError")


@examination(
    "tied-parameter", "torch.optim.Optimizer.add_param_group: duplicates in a group", plain
)
def tied_parameter(make: Any) -> None:
    """A parameter listed twice in a group is refused, or moves by one to two steps (torch: two)."""
    paths = []
    for times, count in ((1, 1), (1, 2), (2, 1)):
        p = torch.nn.Parameter(torch.ones(2, 2))
        try:
            optimizer = make([p] * times)
        except ValueError as error:
            print("note: refused:", error)
            break
        p.grad = torch.full((2, 2), 0.5)
        for _ in range(count):
            optimizer.step()
        paths.append(p.detach()[0, 0].item())
    else:
        once, twice, tied = paths
        summary = (
            f"the parameter went to {tied}, one step leads to {once}, two steps lead to {twice}"
        )
        low, high = sorted((once, twice))
        assert low - 1e-6 <= tied <= high + 1e-6, summary
        print("note:", summary)


@examination("params-generator", OPTIMIZER + "params is an iterable")
def params_generator(make: Any) -> None:
    """A generator such as model.parameters(), and a group of one bare tensor, are accepted."""
    model = torch.nn.Linear(2, 2, bias=False)
    groups = make(model.parameters()).param_groups
    assert groups[0]["params"][0] is model.weight, "the group lacks the generator's parameter"
    groups = make([{"params": model.weight}]).param_groups
    assert groups[0]["params"][0] is model.weight, "the group lacks the bare tensor"


@examination("named-parameters", OPTIMIZER + "named parameters; state_dict saves param_names")
def named_parameters(make: Any) -> None:
    """model.named_parameters() is accepted, and the names are in the state_dict."""
    model = torch.nn.Linear(2, 2, bias=False)
    saved = make(model.named_parameters()).state_dict()
    names = saved["param_groups"][0].get("param_names")
    assert names == ["weight"], f"param_names is {names}, expected ['weight']"


@examination("mixed-names-refused", "torch.optim.Optimizer: all params have names, or none has")
def mixed_names_refused(make: Any) -> None:
    """If some parameters have names and others have none, ValueError is raised."""
    one, two = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    for params in ([("one", one), two], [{"params": [one]}, {"params": [("two", two)]}]):
        try:
            make(params)
        except ValueError:
            pass
        else:
            raise AssertionError(
                "params with and without names were accepted, expected a ValueError"
            )


_BAD = {
    "lr-negative": "{'lr': -1e-2}",
    "lr-two-elements": "{'lr': torch.tensor([1e-3, 1e-3])}",
    "weight-decay-negative": "{'weight_decay': -0.1}",
    "eps-negative": "{'eps': -1e-8}",
    "beta-one": "{'betas': (1.0, 0.9)}",
    "beta-negative": "{'betas': (0.9, -0.1)}",
    "momentum-negative": "{'momentum': -0.5}",
    "rho-above-one": "{'rho': 1.1}",
    "lr-decay-negative": "{'lr_decay': -0.5}",
    "momentum-decay-negative": "{'momentum_decay': -0.2}",
    "etas-equal": "{'etas': (1.0, 1.5)}",
    "nesterov-without-momentum": "{'momentum': 0.0, 'dampening': 0.0, 'nesterov': True}",
}


def _keys(options: str) -> list[str]:
    tree = ast.parse(options, mode="eval").body
    assert isinstance(tree, ast.Dict)
    return [key.value for key in tree.keys if isinstance(key, ast.Constant)]  # type: ignore[misc]


@examination(
    "refused",
    "torch.testing._internal.common_optimizers: the error inputs of torch's classes",
    cases={name: {"options": options} for name, options in _BAD.items()},
    case_needs={
        name: number("eps") if name.startswith("eps") else argument(*_keys(options))
        for name, options in _BAD.items()
    },
)
def refused(make: Any, options: Any) -> None:
    """An invalid value raises ValueError at construction."""
    outcome = "was accepted"
    try:
        make([torch.nn.Parameter(torch.ones(2, 2))], **options)
    except ValueError:
        outcome = ""
    except Exception as error:
        outcome = f"raised {type(error).__name__}: {error}"
    assert not outcome, f"{options} {outcome}, expected a ValueError"


@examination(
    "refused-lr-nan",
    "beyond torch: a check of lr < 0 lets nan pass, and then every parameter becomes nan",
    argument("lr"),
    promised=False,
)
def refused_nan(make: Any) -> None:
    """lr=nan is an error at construction."""
    try:
        make([torch.nn.Parameter(torch.ones(2, 2))], lr=float("nan"))
    except (ValueError, TypeError):
        pass
    else:
        raise AssertionError("lr=nan was accepted, expected a ValueError")


@examination("repr", "torch.optim.Optimizer.__repr__: the class and every option of every group")
def representation(make: Any, name: Any) -> None:
    """repr() names the class and the options."""
    optimizer = make([torch.nn.Parameter(torch.ones(2, 2))])
    text = repr(optimizer)
    missing = [w for w in (name, *optimizer.defaults) if w not in text]
    assert not missing, f"repr lacks {missing}: {text}"


@examination("group-defaults", "torch.optim: options that a group leaves out take the defaults")
def group_defaults(make: Any) -> None:
    """A group without an option gets the constructor's value, even a group that is added later."""
    optimizer = make([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))]})
    for k, group in enumerate(optimizer.param_groups):
        missing = [name for name in optimizer.defaults if name not in group]
        assert not missing, f"group {k} lacks {missing}"


@examination(
    "added-group-refused",
    "beyond torch: a group's own options are checked like the constructor's",
    argument("lr"),
    promised=False,
)
def added_group_refused(make: Any) -> None:
    """A group with a negative lr raises ValueError, at construction and in add_param_group."""
    bad = {"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": -1.0}
    optimizer = make([torch.nn.Parameter(torch.ones(2, 2))])
    for way, call in (("the constructor", make), ("add_param_group", optimizer.add_param_group)):
        try:
            call([bad] if call is make else bad)
        except ValueError:
            pass
        else:
            raise AssertionError(f"{way} accepted a group with lr=-1.0, expected a ValueError")
    assert len(optimizer.param_groups) == 1, "the refused group was added"
