"""Seeds the random generators of the process and of a user's file before a run."""

from __future__ import annotations

import hashlib
import random
import sys
from collections import deque
from collections.abc import Container
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from steepest.tasks import user_modules
from steepest.tasks.randomness import begin

LONGEST = 1000
"""A list, tuple or dict with more items is not searched for generators."""
MOST_OBJECTS = 100_000
"""The search for generators looks into at most this many objects of a file."""
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

_generators: dict[int, list[tuple[str, Any]]] = {}
"""id of a file's module -> (path, generator) of each generator in it. Modules are never freed."""


def remember_generators(module: ModuleType) -> None:
    """Search a file for generators right after its import, before a run can add more."""
    _generators[id(module)] = _find_generators(module)


def generators_of(module: ModuleType) -> list[tuple[str, Any]]:
    """(path, generator) of each generator that was in the file right after its import.

    Generators that the file makes later are not included. An example is a generator in a cache that
    the first run fills.
    """
    return _generators.get(id(module), [])


def seed_everything(seed: int, module: ModuleType) -> None:
    """Seed torch, numpy, `random` and the file's generators, so a run depends only on its seed.

    Each generator of the file gets its own seed, derived from `seed` and the path to the generator.
    So no two generators draw the same numbers, and no generator draws the same numbers as torch.
    """
    begin(seed)
    for path, generator in generators_of(module):
        derived = hashlib.sha256(f"{seed} {path}".encode()).digest()[:4]
        own_seed = int.from_bytes(derived, "big")
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own_seed)
        elif isinstance(generator, np.random.Generator):
            bits: Any = generator.bit_generator
            bits.state = type(bits)(own_seed).state
        else:
            generator.seed(own_seed)


def _find_generators(module: ModuleType) -> list[tuple[str, Any]]:
    """The generators that can be reached from the file and from the user's own modules.

    The user's own modules are the imported modules below the file's folder or the current folder.
    The search is breadth-first, so it finds each generator by its shortest path.
    """
    file = Path(str(module.__file__))
    neighbours = {
        name: sys.modules[name]
        for name, _ in user_modules.under((file.parent, Path.cwd()), str(file))
    }
    seen = {id(generator) for generator in _process_generators()}
    searchable = {module.__name__, *neighbours}
    queue: deque[tuple[str, Any]] = deque([("", vars(module))])
    queue += [(f"{name}:", vars(neighbour)) for name, neighbour in neighbours.items()]
    generators: list[tuple[str, Any]] = []
    while queue and len(seen) < MOST_OBJECTS:
        path, value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, GENERATORS):
            generators.append((path, value))
        else:
            queue += [(f"{path}.{name}", item) for name, item in _contents(value, searchable)]
    return generators


def _process_generators() -> list[Any]:
    """The default generators of torch, numpy and Python, which `begin` seeds."""
    private: list[Any] = [np.random.mtrand._rand, random._inst]  # type: ignore[attr-defined]
    return [torch.default_generator, *torch.cuda.default_generators, *private]


def _contents(value: Any, searchable: Container[str]) -> list[tuple[object, Any]]:
    """(name, value) of everything inside `value` that may be or hold a generator.

    Containers, functions, methods and data loaders are always searched. A class is searched only if
    it was defined in a module in `searchable`. Any other object is searched only if its class was
    defined in such a module.
    """
    if isinstance(value, dict):
        return list(value.items()) if len(value) <= LONGEST else []
    if isinstance(value, (list, tuple, deque)):
        return list(enumerate(value)) if len(value) <= LONGEST else []
    if isinstance(value, partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, FunctionType):
        defaults = [*enumerate(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        return [*defaults, *_closure(value), *vars(value).items()]
    if isinstance(value, (MethodType, BuiltinMethodType)):
        return [("self", value.__self__)] if not isinstance(value.__self__, ModuleType) else []
    modules = type(value).__module__, getattr(value, "__module__", "")
    loads_data = isinstance(value, (DataLoader, Dataset, Sampler))
    if loads_data or any(module in searchable for module in modules):
        slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
        in_slots = [(name, getattr(value, name)) for name in slots if hasattr(value, name)]
        return [*getattr(value, "__dict__", {}).items(), *in_slots]
    return []


def _closure(function: FunctionType) -> list[tuple[object, Any]]:
    variables = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the cell is still empty
            variables.append((name, cell.cell_contents))
    return variables


def _slots(cls: type) -> tuple[str, ...]:
    names = vars(cls).get("__slots__", ())
    return (names,) if isinstance(names, str) else tuple(n for n in names if n[:2] != "__")
