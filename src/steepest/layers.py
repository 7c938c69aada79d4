"""The parameters of a model: where each occurs, whether it decays, how deep its layer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm, normalization
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

Selector = str | type[nn.Module] | Callable[[str, Tensor], bool]
Where = Selector | Sequence[Selector]


def _layers_of(module: Any) -> list[type[nn.Module]]:
    """Returns the layer classes that a Python module of torch.nn defines."""
    classes = [c for c in vars(module).values() if isinstance(c, type)]
    return [c for c in classes if issubclass(c, nn.Module) and c.__module__ == module.__name__]


_NORMS = tuple(c for m in (batchnorm, instancenorm, normalization) for c in _layers_of(m))
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INNER = ("_orig_mod", "_checkpoint_wrapped_module")  # torch.compile, activation checkpoints


@dataclass(frozen=True)
class Occurrence:
    """A place in a model where a parameter occurs; a tied parameter has several occurrences.

    name: the parameter's full name. owner: the module that holds the parameter. attribute: the
    parameter's name in `owner`. path: the modules that contain the parameter, the model first.
    element: the name of the block of a stack that contains the parameter, or "".
    """

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    path: tuple[nn.Module, ...]
    element: str = ""


class Matcher:
    """Selects parameters by patterns of names, module types or functions."""

    def __init__(self, argument: str, where: Where, params: list[list[Occurrence]]) -> None:
        self.where = where
        single = isinstance(where, (str, type)) or callable(where)
        selectors: Any = where if isinstance(where, Iterable) and not single else [where]
        self.selectors = tuple(selectors)
        for selector in self.selectors:
            wrong_type = isinstance(selector, type) and not issubclass(selector, nn.Module)
            if wrong_type or not (isinstance(selector, str) or callable(selector)):
                raise TypeError(
                    f"{argument} has {selector!r}, expected a pattern of names, a type of module, "
                    "or a function of (name, tensor)"
                )
            if isinstance(selector, str) and not any(
                _matches(selector, x) for occurrences in params for x in occurrences
            ):
                names = [occurrences[0].name for occurrences in params]
                raise ValueError(
                    f"{argument} has the pattern {selector!r}, which matches no parameter; the "
                    f"names look like {', '.join(map(repr, names[:3]))}"
                )

    def matches(self, occurrences: Sequence[Occurrence]) -> bool:
        return any(_matches(selector, x) for selector in self.selectors for x in occurrences)


def _matches(selector: Any, occurrence: Occurrence) -> bool:
    name = occurrence.name
    if isinstance(selector, str):
        return fnmatchcase(name, selector) or fnmatchcase(name, f"{selector}.*")
    if isinstance(selector, type):
        return any(isinstance(m, selector) for m in occurrence.path)
    return bool(selector(name, occurrence.tensor))


def unwrap(module: nn.Module) -> nn.Module:
    """Returns the module inside all wrappers that rename its parameters."""
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
    return ((n, unwrap(m)) for n, m in module._modules.items() if m is not None)


def _is_stack(module: nn.Module) -> bool:
    is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
    return is_list and not isinstance(module, ParametrizationList)


def _has_children(module: nn.Module) -> bool:
    return any(n != "parametrizations" for n, _ in _children(module))


def _has_composite_blocks(module: nn.Module) -> bool:
    """Whether some stack in the module has blocks that are themselves made of modules."""
    stacks = (m for m in module.modules() if _is_stack(m))
    return any(_has_children(block) for stack in stacks for _, block in _children(stack))


def occurrences_in(model: nn.Module) -> Iterator[Occurrence]:
    """Yields all occurrences of all parameters, in the order of the model's `named_parameters`."""
    composite = _has_composite_blocks(model)

    def visit(
        module: nn.Module,
        prefix: str,
        above: tuple[nn.Module, ...],
        element: str = "",  # the block of a stack that the module belongs to
        is_open: bool = True,  # whether the module may be a stack: not inside a stack's block
        parametrized: tuple[Any, str] = (None, ""),  # the owner and name of a parametrized tensor
    ) -> Iterator[Occurrence]:
        path = (*above, module)
        for name, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if is_lazy(tensor):
                raise ValueError(
                    f"the parameter {prefix + name!r} has no shape yet; run one batch through the "
                    "model first"
                )
            in_list = isinstance(module, (nn.ParameterList, *_EMBEDDINGS))
            attribute = prefix[:-1].rpartition(".")[2] if in_list else name
            owner, attribute = parametrized if parametrized[1] else (module, attribute)
            yield Occurrence(prefix + name, tensor, owner, attribute, path, element)
        stack = is_open and _is_stack(module)
        stack = stack and (not composite or any(_has_children(m) for _, m in _children(module)))
        block = ""
        for name, child in _children(module):
            if stack and not (block and isinstance(child, _NORMS)):
                block = prefix + name
            inner = parametrized
            if isinstance(child, ParametrizationList) and not parametrized[1]:
                inner = (above[-1], name)  # the module in between is the dict of parametrizations
            open_below = stack or (is_open and not element)
            yield from visit(child, f"{prefix}{name}.", path, block or element, open_below, inner)

    return visit(model, "", ())


def exempt_ids(model: nn.Module) -> set[int]:
    """Returns the ids of the parameters that the model itself exempts from weight decay."""
    ids = {id(p) for p in model.parameters() if getattr(p, "_no_weight_decay", False)}
    for module in model.modules():
        method = getattr(module, "no_weight_decay", None)
        if callable(method) and (names := set(method())):  # type: ignore[call-overload]
            ids |= {id(x.tensor) for x in occurrences_in(unwrap(module)) if x.name in names}
    return ids


def decide_decay(
    occurrences: Sequence[Occurrence],
    overrides: Mapping[str, Matcher],
    exempt: set[int],
    decay_embeddings: bool,
) -> tuple[bool, str]:
    """Returns whether a parameter decays, and the reason."""
    first = occurrences[0]
    matching = [name for name, matcher in overrides.items() if matcher.matches(occurrences)]
    if len(matching) == 2:
        raise ValueError(
            f"the parameter {first.name!r} is matched by both decay and no_decay; make the "
            "patterns disjoint"
        )
    if matching:
        return matching[0] == "decay", matching[0]
    if id(first.tensor) in exempt:
        return False, "declared"
    roles = [_role(x) for x in occurrences]
    if "embedding" in roles and set(roles) <= {"embedding", "weight"}:  # and the head tied to it
        return decay_embeddings, "embedding"
    low_dimensional = first.tensor.dim() < 2
    decays = [role not in ("norm", "bias") and not low_dimensional for role in roles]
    if any(decays) and not all(decays):
        names = " and ".join(f"{x.name!r} ({r})" for x, r in zip(occurrences, roles, strict=True))
        raise ValueError(
            f"{names} are one tied parameter, but only some of these names would decay; put one of "
            "them in decay or in no_decay"
        )
    return decays[0], roles[0]


def _role(occurrence: Occurrence) -> str:
    owner, words = occurrence.owner, occurrence.attribute.split("_")
    if isinstance(owner, _NORMS):
        return "norm"
    if "bias" in words or "biases" in words:
        return "bias"
    if isinstance(owner, _EMBEDDINGS):
        return "embedding"
    if "weight" in words and occurrence.tensor.dim() > 1:
        return "weight"
    return f"{occurrence.tensor.dim()}-d"


def layer_depths(
    params: list[list[Occurrence]], layers: Sequence[Where] | None
) -> tuple[dict[int, int], list[str]]:
    """Returns id of a parameter -> index of its layer, and the names of the layers.

    The layers are counted from the input.
    """
    if layers is not None:
        return _given_depths(params, layers)
    firsts = [occurrences[0] for occurrences in params]
    labels = list(dict.fromkeys(p.element for p in firsts if p.element))
    if not labels:
        raise ValueError(
            "layer_decay was given, but the model has no ModuleList or Sequential whose blocks "
            'could be the layers; pass layers=["stem", "body", "head"], from input to output'
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
    used = sorted(set(depth.values()))
    return {k: used.index(d) for k, d in depth.items()}, [names[i] for i in used]


def _given_depths(
    params: list[list[Occurrence]], layers: Sequence[Where]
) -> tuple[dict[int, int], list[str]]:
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} was given, expected a list of layers: [{layers!r}]")
    matchers = [Matcher(f"layers[{i}]", where, params) for i, where in enumerate(layers)]
    depth, missing = {}, []
    for occurrences in params:
        first = occurrences[0]
        if not first.tensor.requires_grad:
            continue
        matching = [i for i, matcher in enumerate(matchers) if matcher.matches([first])]
        if len(matching) > 1:
            a, b = matching[:2]
            raise ValueError(
                f"the parameter {first.name!r} is in layers[{a}] ({layers[a]!r}) and in "
                f"layers[{b}] ({layers[b]!r}), expected one; make the entries disjoint"
            )
        if matching:
            depth[id(first.tensor)] = matching[0]
        else:
            missing.append(first.name)
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"{len(missing)} parameters are in no layer ({shown}), expected each in one layer; add "
            "an entry to layers that matches them"
        )
    names = [where if isinstance(where, str) else f"layer {i}" for i, where in enumerate(layers)]
    return depth, names
