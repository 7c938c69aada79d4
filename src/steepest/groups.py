"""Makes parameter groups of a model.

A group says whether its parameters decay, which learning rate they have, and which rule steps them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import plain, real
from .classes import class_of
from .definition import Rule, inside
from .families import family_of
from .layers import (
    Matcher,
    Occurrence,
    Where,
    decide_decay,
    exempt_ids,
    layer_depths,
    occurrences_in,
    unwrap,
)

_WIDTH = 100


class ParamGroups(list[dict[str, Any]]):
    """Groups as torch.optim takes them. `print` shows which group each parameter is in, and why.

    frozen: (name, tensor) of the parameters left out because they do not require a gradient.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        why: Mapping[str, str],
        frozen: Sequence[tuple[str, Tensor]],
    ) -> None:
        super().__init__(groups)
        self.frozen = tuple(frozen)
        self._why = dict(why)
        # listed now: an optimizer of torch.optim will add all of its own options to the groups
        keys = dict.fromkeys(k for g in groups for k in g)
        self._options = [k for k in keys if k not in ("params", "param_names", "name")]

    def table(self) -> str:
        """Returns text of at most 100 columns. Each group has two lines: its options and sizes,
        then why its parameters are in it (with counts) and the first names of these parameters.
        """
        rows = [["group", *self._options, "tensors", "elements"]]
        notes = [""]
        for group in self:
            names, tensors = _named(group)
            options = [_value(group.get(k)) for k in self._options]
            rows.append([str(group.get("name", "")), *options, *_sizes(tensors)])
            reasons = Counter(self._why.get(n, "added later") for n in names)
            notes.append(_note(", ".join(f"{k} ({n})" for k, n in reasons.most_common()), names))
        if self.frozen:
            gap = [""] * len(self._options)
            rows.append(["left out", *gap, *_sizes([t for _, t in self.frozen])])
            notes.append(_note("requires_grad=False", [n for n, _ in self.frozen]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        widths[0] = min(widths[0], max(12, _WIDTH - sum(w + 2 for w in widths[1:])))
        lines = []
        for row, note in zip(rows, notes, strict=True):
            numbers = (x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))
            first = _cut(row[0], widths[0]).ljust(widths[0])
            lines += [_cut("  ".join([first, *numbers]), _WIDTH), note]
        return "\n".join(filter(None, lines))

    __str__ = __repr__ = table


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    lr: float | Tensor | None = None,
    decay_embeddings: bool = True,
    decay: Where = (),
    no_decay: Where = (),
    layer_decay: float | None = None,
    layers: Sequence[Where] | None = None,
    rules: Mapping[str, Where] | Sequence[Mapping[str, Any]] = (),
) -> ParamGroups:
    """Make groups for `steepest` and `torch.optim` classes. Print the groups to see the
    parameters of each group.

    Each parameter that requires a gradient is in exactly one group, under its name in the bare
    model: DDP, `fully_shard`, `torch.compile` and activation checkpoints change neither names nor
    order. A tied parameter has the first of its names.

    Weight decay is off for:
    - the parameters of torch's normalisation layers, recognised by module type;
    - biases, recognised by the word "bias" in the attribute's name (`bias`, `in_proj_bias`,
      `bias_ih_l0`, `relative_position_bias_table`), even if they are embedding tables;
    - every other parameter with fewer than two dimensions (gains, scales);
    - the parameters that the model itself exempts: by `_no_weight_decay = True` on the parameter,
      or by a module's method `no_weight_decay()`, which returns names relative to the module.
    Weight decay is on for everything else, such as a class token of shape (1, 1, width). The parts
    of a parametrized tensor are treated like the tensor.

    weight_decay: the decay of the groups that decay; the other groups get 0.
    lr: the rate of every group that has no entry in `rules` with "rule" or "lr". If None, these
        groups take the optimizer's `lr`. Required with `layer_decay`.
    decay_embeddings: whether nn.Embedding, nn.EmbeddingBag and the heads tied to them decay.
    decay, no_decay: your own decisions, which override the defaults above. Give one selector or a
        sequence of selectors. A selector is a pattern of names (`"*.scale"`; `"head"` also matches
        everything below it), a module type (everything inside modules of that type, such as your
        own norms), or a function of (name, tensor).
    layer_decay: a layer's rate is lr * layer_decay**(depth below the top), as in the fine-tuning of
        ELECTRA and BEiT. The top layer has `lr`.
    layers: the layers from input to output, each given as in `decay`. By default each block of a
        stack (a ModuleList or Sequential) is a layer, in the order of registration. If some stacks
        have blocks that contain modules, only these stacks count. A norm in a stack belongs to the
        block before it. Embeddings and parameters before the first block are the lowest layer, and
        parameters after the last block are the highest. Parameters between two stacks belong to the
        block before them. A model with two towers needs `layers`.
    rules: which rule steps which parameters, and with which options: `{"sgd": where}` or
        `[{"rule": "sgd", "where": where, "lr": 0.1, ...}]`, with `where` as in `decay`. The first
        match counts; parameters without a match are stepped by the optimizer's own rule. An entry
        without "rule" only sets options. An entry with "rule" takes `weight_decay` from the
        argument above, but not `lr`. Optimizers of torch.optim ignore "rule".

    Raises TypeError for an argument of a wrong type, and ValueError for a pattern that matches
    nothing, a parameter in two layers or in none, a tied parameter that decays under one name but
    not under another, an uninitialised parameter, and a model without trainable parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a torch.nn.Module; pass the model itself"
        )
    weight_decay = _number("weight_decay", weight_decay, "[0, inf)")
    model, routes = unwrap(model), _read_routes(rules)
    by_tensor: dict[int, list[Occurrence]] = {}
    for occurrence in occurrences_in(model):
        by_tensor.setdefault(id(occurrence.tensor), []).append(occurrence)
    params = list(by_tensor.values())
    overrides = {
        "decay": Matcher("decay", decay, params),
        "no_decay": Matcher("no_decay", no_decay, params),
    }
    if layer_decay is not None:
        layer_decay = _number("layer_decay", layer_decay, "(0, 1]")
        depth, labels = layer_depths(params, layers)
    elif layers is not None:
        raise ValueError("layers was given without layer_decay; give both, or neither")
    else:
        depth, labels = {}, [""]

    matchers = [Matcher(f"rules[{i}]", r["where"], params) for i, r in enumerate(routes)]
    exempt = exempt_ids(model)
    bins: dict[tuple[int, int, bool], list[tuple[str, Tensor]]] = {}
    why, frozen, used = {}, [], set()
    for occurrences in params:
        name, tensor = occurrences[0].name, occurrences[0].tensor
        route = next((i for i, m in enumerate(matchers) if m.matches(occurrences)), -1)
        used.add(route)
        if not tensor.requires_grad:
            frozen.append((name, tensor))
            continue
        decays, why[name] = decide_decay(occurrences, overrides, exempt, decay_embeddings)
        key = (route, depth.get(id(tensor), 0), not decays)
        bins.setdefault(key, []).append((name, tensor))
    for i, matcher in enumerate(matchers):
        if i not in used:
            raise ValueError(
                f"rules[{i}] ({matcher.where!r}) got no parameter, because earlier entries took "
                "all parameters that it matches; put it before them, or drop it"
            )
    if not bins:
        raise ValueError(
            f"the model has {len(frozen)} parameters, but none requires a gradient; set "
            "requires_grad=True on the parameters to train"
        )
    groups = []
    top = max(level for _, level, _ in bins)  # of the trained parameters
    for (route, level, no_weight_decay), named in sorted(bins.items(), key=lambda item: item[0]):
        entry = routes[route] if route >= 0 else {}
        options = {k: _plain(v) for k, v in entry.items() if k not in ("where", "name")}
        if "rule" in entry:
            options = family_of(entry["rule"]).plain(options, f" in rules[{route}]")
        rate = options.get("lr", None if "rule" in entry else lr)
        if layer_decay is not None and rate is None:
            where = f"the entry rules[{route}]" if "rule" in entry else "param_groups"
            raise ValueError(
                f"layer_decay={layer_decay!r} was given, but {where} has no lr for the topmost "
                "layer; pass as lr the rate that you would pass to the optimizer"
            )
        if rate is not None:
            if not isinstance(rate, Tensor):
                rate = _number("lr", rate, "[0, inf)")
            below = top - level
            options["lr"] = rate * layer_decay**below if layer_decay is not None else rate
        decays = _number("weight_decay", options.get("weight_decay", weight_decay), "[0, inf)")
        options["weight_decay"] = 0.0 if no_weight_decay else decays
        prefix = entry.get("name", entry.get("rule", f"rules[{route}]" if entry else ""))
        suffix = "no decay" if no_weight_decay else "decay"
        title = " ".join(filter(None, [prefix, labels[level], suffix]))
        if any(g["name"] == title for g in groups):  # two entries with one rule
            title = f"rules[{route}] {title}"
        groups.append({"params": named, **options, "name": title})
    return ParamGroups(groups, why, frozen)


def _plain(value: Any) -> Any:
    """Returns a number as a Python number, and a one-dimensional array as a tuple of numbers.

    Any other value is returned unchanged.
    """
    is_array = isinstance(value, np.ndarray) and value.ndim == 1
    return tuple(map(plain, value)) if is_array else plain(value)


def _number(name: str, value: Any, interval: str) -> Any:
    """Returns the number as a Python number; a tensor stays a tensor.

    Raises ValueError if the number is not in `interval`.
    """
    if not inside(interval, real(value)):
        raise ValueError(f"{name}={value!r} was given, expected a number in {interval}")
    return plain(value)


def _read_routes(rules: Mapping[str, Where] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(rules, Mapping):
        rules = [{"rule": rule, "where": where} for rule, where in rules.items()]
    routes = []
    for i, entry in enumerate(rules):
        if not isinstance(entry, Mapping) or "where" not in entry or "params" in entry:
            raise TypeError(
                f'rules[{i}] is {entry!r}, expected a dict like {{"rule": "sgd", "where": "head", '
                '"lr": 0.1}, without "params"'
            )
        route = dict(entry)
        if "rule" in route:
            class_of(route["rule"])  # raises for an unknown rule and suggests the nearest known one
            if isinstance(route["rule"], Rule):
                route["rule"] = route["rule"].name
        routes.append(route)
    return routes


def _named(group: Mapping[str, Any]) -> tuple[list[str], list[Tensor]]:
    """Returns the names and the tensors of a group.

    The group has either (name, tensor) pairs in `params`, or tensors in `params` and their names in
    `param_names`.
    """
    params = group["params"]
    if "param_names" in group:
        return list(group["param_names"]), list(params)
    return [p[0] for p in params], [p[1] for p in params]


def _sizes(tensors: Sequence[Tensor]) -> tuple[str, str]:
    return f"{len(tensors):,}", f"{sum(t.numel() for t in tensors):,}"


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _note(why: str, names: Sequence[str]) -> str:
    text = f"{why}: {', '.join(names)}"
    return "    " + textwrap.shorten(text, _WIDTH - 4, placeholder=" ...")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
