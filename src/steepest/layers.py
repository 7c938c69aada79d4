"""The parameters of a model, where each stands in it, and how deep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm, normalization
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

One = str | type[nn.Module] | Callable[[str, Tensor], bool]
Where = One | Sequence[One]
_NORMS = tuple(
    c for home in (batchnorm, instancenorm, normalization) for c in vars(home).values()
    if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == home.__name__
)  # fmt: skip
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INNER = ("_orig_mod", "_checkpoint_wrapped_module")  # torch.compile, activation checkpoints


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: the modules around it, the one that it belongs to and what it is
    called there; `element` names the block of a stack that it is in.
    """

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    path: tuple[nn.Module, ...]
    element: str = ""


class Choice:
    """Whether a parameter is meant by a pattern, a module type or a function, or one of several."""

    def __init__(self, argument: str, given: Where, everything: list[list[Place]]) -> None:
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

    def has(self, places: Sequence[Place]) -> bool:
        return any(_meant(entry, p) for entry in self.entries for p in places)


def _meant(entry: Any, place: Place) -> bool:
    if isinstance(entry, str):
        return fnmatchcase(place.name, entry) or fnmatchcase(place.name, f"{entry}.*")
    if isinstance(entry, type):
        return any(isinstance(m, entry) for m in place.path)
    return bool(entry(place.name, place.tensor))


def bare(module: nn.Module) -> nn.Module:
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
    return ((n, bare(m)) for n, m in module._modules.items() if m is not None)


def _is_stack(module: nn.Module) -> bool:
    kinds = (nn.ModuleList, nn.Sequential)
    return isinstance(module, kinds) and not isinstance(module, ParametrizationList)


def _has_parts(module: nn.Module) -> bool:
    return any(n != "parametrizations" for n, _ in _children(module))


def _composite(module: nn.Module) -> bool:
    """Whether some stack in the module has blocks that are themselves made of modules."""
    stacks = (m for m in module.modules() if _is_stack(m))
    return any(_has_parts(block) for stack in stacks for _, block in _children(stack))


def places_of(model: nn.Module) -> Iterator[Place]:
    """Every place of every parameter, in the order of `named_parameters` on the bare model."""
    composite = _composite(model)

    def visit(
        module: nn.Module,
        prefix: str,
        above: tuple[nn.Module, ...],
        element: str = "",  # the block of a stack that the module belongs to
        is_open: bool = True,  # no such block, or the module is one, and may be a stack itself
        whole: tuple[Any, str] = (None, ""),  # what a parametrization is of: module and tensor
    ) -> Iterator[Place]:
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
            yield Place(prefix + name, tensor, owner, called, path, element)
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


def declared_by(model: nn.Module) -> set[int]:
    """The ids of what the model's own modules say is not to decay."""
    found = {id(p) for p in model.parameters() if getattr(p, "_no_weight_decay", False)}
    for module in model.modules():
        says = getattr(module, "no_weight_decay", None)
        if callable(says) and (names := set(says())):  # type: ignore[call-overload]
            found |= {id(p.tensor) for p in places_of(bare(module)) if p.name in names}
    return found


def verdict(
    places: Sequence[Place],
    chosen: Mapping[str, Choice],
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


def _kind(place: Place) -> str:
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


def depths_of(
    everything: list[list[Place]], layers: Sequence[Where] | None
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
    everything: list[list[Place]], layers: Sequence[Where]
) -> tuple[dict[int, int], list[str]]:
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} was given, expected a list of layers: [{layers!r}]")
    choices = [Choice(f"layers[{i}]", one, everything) for i, one in enumerate(layers)]
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
