"""Parameter groups from a model: what decays, how fast each layer learns, which rule steps what."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm, normalization
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from .checks import plain, real
from .classes import class_of
from .definition import Rule, inside
from .families import family_of

One = str | type[nn.Module] | Callable[[str, Tensor], bool]
Where = One | Sequence[One]

_WIDTH = 100
_NORMS = tuple(
    c for home in (batchnorm, instancenorm, normalization) for c in vars(home).values()
    if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == home.__name__
)  # fmt: skip
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INNER = ("_orig_mod", "_checkpoint_wrapped_module")  # torch.compile, activation checkpoints


@dataclass(frozen=True)
class _Place:
    """Where a parameter stands: the modules around it, the one that it belongs to and what it is
    called there; `element` names the block of a stack that it is in.
    """

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    path: tuple[nn.Module, ...]
    element: str = ""


class ParamGroups(list[dict[str, Any]]):
    """Groups as torch.optim takes them. `print` shows what went where, and why.

    frozen: (name, tensor) of what was left out because it does not require a gradient.
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
        # an optimizer of torch.optim adds all of its own to the groups that it is given
        keys = dict.fromkeys(k for g in groups for k in g)
        self._options = [k for k in keys if k not in ("params", "param_names", "name")]

    def table(self) -> str:
        """What went where, as text of 100 columns: per group its options and sizes, then why (with
        counts) and the first names.
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
    """Groups for `steepest` and `torch.optim` classes; print them to see what went where.

    Every parameter that requires a gradient stands in one group, once, under the name that it has
    on the bare model: DDP, `fully_shard`, `torch.compile` and activation checkpoints change neither
    names nor order. A tied parameter counts under its first name.

    Where `weight_decay` acts. Not on: the parameters of torch's normalisation layers, by module
    type; biases (an attribute with the word "bias" in its name: `bias`, `in_proj_bias`,
    `bias_ih_l0`, `relative_position_bias_table`; a table of embeddings of such a name); every other
    parameter with less than two dimensions (gains, scales); what the model itself declares, as a
    parameter's `_no_weight_decay = True` or a module's `no_weight_decay()`, names relative to that
    module. On: everything else, so also on a bare parameter of two or more dimensions, such as a
    class token of shape (1, 1, width). A parametrized tensor's parts count as that tensor.

    weight_decay: of the groups that decay; the others get 0.
    lr: of the groups that their rule gives none; needed for `layer_decay`. Without it the groups
        have no `lr` and take the optimizer's.
    decay_embeddings: whether nn.Embedding and nn.EmbeddingBag decay; tied to a head, the head too.
    decay, no_decay: what you decide yourself, over the rule above. One or a sequence of: a pattern
        of names (`"*.scale"`; `"head"` is also everything below it), a module type (everything
        inside modules of that type; your own norms belong here), a function of (name, tensor).
    layer_decay: lr * layer_decay**(depth below the top), as ELECTRA and BEiT are fine-tuned: the
        topmost layer has `lr`.
    layers: what makes up each layer, from input to output, an entry as in `decay` each. If not
        given: each block of a ModuleList or Sequential is a layer, in the order of registration (of
        single layers only where no stack has composite blocks, a norm going with what it follows);
        what stands before the first, and embeddings, are the lowest; what stands after the last is
        the highest; what stands between two stacks goes with the block before. Two towers need
        `layers`.
    rules: `{"sgd": where}` or `[{"rule": "sgd", "where": where, "lr": 0.1, ...}]`, `where` as in
        `decay`: which rule steps what, with its options; the first match wins, and what is left
        goes to the optimizer's own rule. An entry without "rule" gives options alone. `lr` is not
        handed to another rule, `weight_decay` is. Optimizers of torch.optim ignore "rule".

    Raises TypeError for a wrong kind of argument, and ValueError for a pattern that matches
    nothing, a parameter in two layers or in none, one that decays by one name and not by the other,
    one not yet initialised, and a model without trainable parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a torch.nn.Module; pass the model itself"
        )
    weight_decay = _number("weight_decay", weight_decay, "[0, inf)")
    model, routes = _bare(model), _routes(rules)
    found: dict[int, list[_Place]] = {}
    for place in _places(model):
        found.setdefault(id(place.tensor), []).append(place)
    everything = list(found.values())
    chosen = {
        "decay": _Choice("decay", decay, everything),
        "no_decay": _Choice("no_decay", no_decay, everything),
    }
    if layer_decay is not None:
        layer_decay = _number("layer_decay", layer_decay, "(0, 1]")
        depth, labels = _depths(everything, layers)
    elif layers is not None:
        raise ValueError("layers was given without layer_decay; give both, or neither")
    else:
        depth, labels = {}, [""]

    conditions = [_Choice(f"rules[{i}]", r["where"], everything) for i, r in enumerate(routes)]
    declared = _declared(model)
    bins: dict[tuple[int, int, bool], list[tuple[str, Tensor]]] = {}
    why, frozen, used = {}, [], set()
    for places in everything:
        name, tensor = places[0].name, places[0].tensor
        route = next((i for i, c in enumerate(conditions) if c.has(places)), -1)
        used.add(route)
        if not tensor.requires_grad:
            frozen.append((name, tensor))
            continue
        decays, why[name] = _verdict(places, chosen, declared, decay_embeddings)
        key = (route, depth.get(id(tensor), 0), not decays)
        bins.setdefault(key, []).append((name, tensor))
    for i, condition in enumerate(conditions):
        if i not in used:
            raise ValueError(
                f"rules[{i}] ({condition.given!r}) got no parameter, expected at least one; "
                "earlier entries took all that it matches: put it before them, or drop it"
            )
    if not bins:
        raise ValueError(
            f"the model has {len(frozen)} parameters and none that requires a gradient, expected "
            "at least one; set requires_grad=True on what is to be trained"
        )
    groups = []
    top = max(level for _, level, _ in bins)  # of what is trained
    for (route, level, still), params in sorted(bins.items(), key=lambda item: item[0]):
        entry = routes[route] if route >= 0 else {}
        options = {k: _plain(v) for k, v in entry.items() if k not in ("where", "name")}
        if "rule" in entry:
            options = family_of(entry["rule"]).plain(options, f" in rules[{route}]")
        rate = options.get("lr", None if "rule" in entry else lr)
        if layer_decay is not None and rate is None:
            what = f"the entry rules[{route}]" if "rule" in entry else "param_groups"
            raise ValueError(
                f"layer_decay={layer_decay!r} was given and {what} has no lr, expected the rate of "
                "the topmost layer; pass the one that you would pass to the optimizer"
            )
        if rate is not None:
            if not isinstance(rate, Tensor):
                rate = _number("lr", rate, "[0, inf)")
            below = top - level
            options["lr"] = rate * layer_decay**below if layer_decay is not None else rate
        decays = _number("weight_decay", options.get("weight_decay", weight_decay), "[0, inf)")
        options["weight_decay"] = 0.0 if still else decays
        words = [entry.get("name", entry.get("rule", f"rules[{route}]" if entry else ""))]
        title = " ".join(filter(None, [*words, labels[level], "no decay" if still else "decay"]))
        if any(g["name"] == title for g in groups):  # two entries with one rule
            title = f"rules[{route}] {title}"
        groups.append({"params": params, **options, "name": title})
    return ParamGroups(groups, why, frozen)


class _Choice:
    """Whether a parameter is meant by a pattern, a module type or a function, or one of several."""

    def __init__(self, argument: str, given: Where, everything: list[list[_Place]]) -> None:
        self.given = given
        listed: Any = [given] if isinstance(given, (str, type)) or callable(given) else given
        self.entries = tuple(listed) if isinstance(listed, Iterable) else (listed,)
        for entry in self.entries:
            kind = isinstance(entry, type)
            if not (isinstance(entry, str) or callable(entry)) or (
                kind and not issubclass(entry, nn.Module)
            ):
                raise TypeError(
                    f"{argument} has {entry!r}, expected a pattern of names, a type of module, or "
                    "a function of (name, tensor)"
                )
            if isinstance(entry, str) and not any(
                _meant(entry, p) for ps in everything for p in ps
            ):
                names = [ps[0].name for ps in everything]
                raise ValueError(
                    f"{argument} has the pattern {entry!r}, which matches no parameter; the names "
                    f"look like {', '.join(map(repr, names[:3]))}"
                )

    def has(self, places: Sequence[_Place]) -> bool:
        return any(_meant(entry, p) for entry in self.entries for p in places)


def _meant(entry: Any, place: _Place) -> bool:
    if isinstance(entry, str):
        return fnmatchcase(place.name, entry) or fnmatchcase(place.name, f"{entry}.*")
    if isinstance(entry, type):
        return any(isinstance(m, entry) for m in place.path)
    return bool(entry(place.name, place.tensor))


def _plain(value: Any) -> Any:
    """Numbers and arrays of them as Python's own."""
    listed = isinstance(value, np.ndarray) and value.ndim == 1
    return tuple(map(plain, value)) if listed else plain(value)


def _number(name: str, value: Any, interval: str) -> Any:
    """The number made plain; a tensor stays one."""
    if not inside(interval, real(value)):
        raise ValueError(f"{name}={value!r} was given, expected a number in {interval}")
    return plain(value)


def _routes(rules: Mapping[str, Where] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
            class_of(route["rule"])  # raises for an unknown one, with the nearest known
            if isinstance(route["rule"], Rule):
                route["rule"] = route["rule"].name
        routes.append(route)
    return routes


def _bare(module: nn.Module) -> nn.Module:
    """The module inside wrappers that rename its parameters."""
    while True:
        inner = next((n for n in _INNER if n in module._modules), None)
        if isinstance(module, _WRAPPERS):
            inner = "module"
        elif "_fsdp_wrapped_module" in module._modules:
            raise ValueError(
                "the model is wrapped in FullyShardedDataParallel, which flattens parameters so "
                "that their dimensions are lost; wrap it with torch.distributed.fsdp.fully_shard"
            )
        if inner is None:
            return module
        module = module._modules[inner]  # type: ignore[assignment]


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, _bare(m)) for n, m in module._modules.items() if m is not None)


def _is_stack(module: nn.Module) -> bool:
    kinds = (nn.ModuleList, nn.Sequential)
    return isinstance(module, kinds) and not isinstance(module, ParametrizationList)


def _has_parts(module: nn.Module) -> bool:
    return any(n != "parametrizations" for n, _ in _children(module))


def _composite(module: nn.Module) -> bool:
    """Whether some stack in the module has blocks that are themselves made of modules."""
    stacks = (m for m in module.modules() if _is_stack(m))
    return any(_has_parts(block) for stack in stacks for _, block in _children(stack))


def _places(model: nn.Module) -> Iterator[_Place]:
    """Every place of every parameter, in the order of `named_parameters` on the bare model."""
    composite = _composite(model)

    def visit(
        module: nn.Module,
        prefix: str,
        above: tuple[nn.Module, ...],
        element: str = "",  # the block of a stack that the module belongs to
        is_open: bool = True,  # no such block, or the module is one, and may be a stack itself
        whole: tuple[Any, str] = (None, ""),  # what a parametrization is of: module and tensor
    ) -> Iterator[_Place]:
        path = (*above, module)
        for name, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if is_lazy(tensor):
                raise ValueError(
                    f"the parameter {prefix + name!r} is not initialised yet, expected one with a "
                    "shape; run one batch through the model first"
                )
            listed = isinstance(module, (nn.ParameterList, *_EMBEDDINGS))
            called = prefix[:-1].rpartition(".")[2] if listed else name
            owner, called = whole if whole[1] else (module, called)
            yield _Place(prefix + name, tensor, owner, called, path, element)
        stack = is_open and _is_stack(module)
        stack = stack and (not composite or any(_has_parts(m) for _, m in _children(module)))
        block = ""
        for name, child in _children(module):
            if stack and not (block and isinstance(child, _NORMS)):
                block = prefix + name
            inner = whole
            if isinstance(child, ParametrizationList) and not whole[1]:
                inner = (above[-1], name)  # between them stands the dict of parametrizations
            yield from visit(
                child, f"{prefix}{name}.", path, block or element,
                stack or (is_open and not element), inner,
            )  # fmt: skip

    return visit(model, "", ())


def _declared(model: nn.Module) -> set[int]:
    """The ids of what the model's own modules say is not to decay."""
    found = {id(p) for p in model.parameters() if getattr(p, "_no_weight_decay", False)}
    for module in model.modules():
        says = getattr(module, "no_weight_decay", None)
        if callable(says) and (names := set(says())):  # type: ignore[call-overload]
            found |= {id(p.tensor) for p in _places(_bare(module)) if p.name in names}
    return found


def _verdict(
    places: Sequence[_Place],
    chosen: Mapping[str, _Choice],
    declared: set[int],
    decay_embeddings: bool,
) -> tuple[bool, str]:
    """Whether a parameter decays, and why."""
    wanted = [k for k, choice in chosen.items() if choice.has(places)]
    if len(wanted) == 2:
        raise ValueError(
            f"the parameter {places[0].name!r} is named by decay and by no_decay, expected one of "
            "them; make the patterns disjoint"
        )
    if wanted:
        return wanted[0] == "decay", wanted[0]
    if id(places[0].tensor) in declared:
        return False, "declared"
    kinds = [_kind(p) for p in places]
    if "embedding" in kinds and set(kinds) <= {"embedding", "weight"}:  # and the head tied to it
        return decay_embeddings, "embedding"
    still = [
        k in ("norm", "bias") or p.tensor.dim() < 2 for k, p in zip(kinds, places, strict=True)
    ]
    if any(still) and not all(still):
        both = " and ".join(f"{p.name!r} ({k})" for p, k in zip(places, kinds, strict=True))
        raise ValueError(
            f"one parameter is {both}, which do not both decay; name it in decay or no_decay"
        )
    return not still[0], kinds[0]


def _kind(place: _Place) -> str:
    owner, words = place.owner, place.attribute.split("_")
    if isinstance(owner, _NORMS):
        return "norm"
    if "bias" in words or "biases" in words:
        return "bias"
    if isinstance(owner, _EMBEDDINGS):
        return "embedding"
    if "weight" in words and place.tensor.dim() > 1:
        return "weight"
    return f"{place.tensor.dim()}-d"


def _depths(
    everything: list[list[_Place]], layers: Sequence[Where] | None
) -> tuple[dict[int, int], list[str]]:
    """The layer of each parameter (by id), counted from the input, and the layers' names."""
    if layers is not None:
        return _given_depths(everything, layers)
    firsts = [places[0] for places in everything]
    labels = list(dict.fromkeys(p.element for p in firsts if p.element))
    if not labels:
        raise ValueError(
            "layer_decay was given and the model has no ModuleList or Sequential whose blocks "
            'could be the layers; pass layers=["stem", "body", "head"], names from input to output'
        )
    depth, seen = {}, 0
    for p in firsts:
        if p.element:
            depth[id(p.tensor)] = seen = 1 + labels.index(p.element)
        else:
            lowest = seen == 0 or isinstance(p.owner, _EMBEDDINGS)
            depth[id(p.tensor)] = 0 if lowest else seen
    last = max(i for i, p in enumerate(firsts) if p.element)
    for p in firsts[last + 1 :]:
        depth[id(p.tensor)] = depth[id(p.tensor)] and 1 + len(labels)
    names = ["stem", *labels, "head"]
    there = sorted(set(depth.values()))
    return {k: there.index(d) for k, d in depth.items()}, [names[i] for i in there]


def _given_depths(
    everything: list[list[_Place]], layers: Sequence[Where]
) -> tuple[dict[int, int], list[str]]:
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} was given, expected a list of layers: [{layers!r}]")
    choices = [_Choice(f"layers[{i}]", one, everything) for i, one in enumerate(layers)]
    depth, missing = {}, []
    for places in everything:
        first = places[0]
        if not first.tensor.requires_grad:
            continue
        at = [i for i, choice in enumerate(choices) if choice.has([first])]
        if len(at) > 1:
            raise ValueError(
                f"the parameter {first.name!r} stands in layers[{at[0]}] ({layers[at[0]]!r}) and "
                f"layers[{at[1]}] ({layers[at[1]]!r}), expected one; make the entries disjoint"
            )
        if at:
            depth[id(first.tensor)] = at[0]
        else:
            missing.append(first.name)
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{len(missing)} parameters stand in no layer ({shown}), expected each in one; add an "
            "entry to layers that matches them"
        )
    names = [one if isinstance(one, str) else f"layer {i}" for i, one in enumerate(layers)]
    return depth, names


def _named(group: Mapping[str, Any]) -> tuple[list[str], list[Tensor]]:
    """Names and tensors of a group, also after an optimizer of torch.optim has taken it apart."""
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
