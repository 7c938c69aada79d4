"""An examination is a short function, which the doctor turns into a script.

The script consists of the imports, the helpers, the constructor of the examined class, and the body
of the function. The doctor executes exactly this script, and prints it if the examination fails. So
the printed script reproduces the failure.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .subject import Subject

Need = Callable[["Subject"], str | None]
"""Returns why an examination does not apply to a class, or None if it applies."""


@dataclass(frozen=True)
class Examination:
    """One examination.

    name: stays the same in later versions.
    about: one line on the required behaviour.
    source: where torch documents the behaviour. If torch does not document it, why it is required.
    promised: whether torch.optim promises the behaviour.
    function: the function whose body becomes the script. Its argument `make` is the constructor of
    the examined class.
    case: other argument of the function -> expression for its value. If an argument is not in
    `case`, `Subject.value` returns the expression.
    needs: requirements on the class. If the class does not meet one of them, the examination does
    not apply.
    """

    name: str
    about: str
    source: str
    promised: bool
    function: Callable[..., None] = field(repr=False)
    case: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    needs: tuple[Need, ...] = field(default=(), repr=False)

    def script(self, subject: Subject) -> str:
        """Return the self-contained script that examines one class."""
        body, names, values = _parts(self.function)
        lines = [
            f"{name} = {self.case[name] if name in self.case else subject.value(name)}"
            for name in values
        ]
        names = (names - {*values}) | _read(ast.parse("\n".join([subject.make, *lines])))
        imports, helpers = _environment(self.function, names)
        head = [*sorted(imports.values(), key=_import_order), *subject.imports]
        blocks = ["\n".join(head), *helpers, "\n".join([subject.make, *lines]) + "\n" + body]
        return "\n\n".join(blocks) + "\n"


table: dict[str, Examination] = {}
"""Name -> examination, in the order of the report."""


def examination(
    name: str,
    source: str,
    *needs: Need,
    promised: bool = True,
    cases: Mapping[str, Mapping[str, str]] | None = None,
    case_needs: Mapping[str, Need] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a function to `table`, once for each case.

    cases: suffix of the examination's name -> dict from an argument of the function to an
    expression.
    case_needs: suffix -> a need of this case only.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        about = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
        for suffix, case in (cases or {"": {}}).items():
            full = f"{name}-{suffix}" if suffix else name
            if full in table:
                raise ValueError(f"two examinations are called {full!r}; rename one")
            more = (case_needs[suffix],) if case_needs and suffix in case_needs else ()
            text = f"{about[:-1]}: {suffix}." if suffix else about
            table[full] = Examination(full, text, source, promised, function, case, needs + more)
        return function

    return add


@cache
def _parts(function: Callable[..., None]) -> tuple[str, frozenset[str], tuple[str, ...]]:
    """Return a function's body as text, the names that it reads, and its arguments.

    The argument `make` is left out.
    """
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    first = tree.body[1]  # after the docstring
    body = textwrap.dedent("\n".join(source.splitlines()[first.lineno - 1 :]))
    values = tuple(a.arg for a in tree.args.args if a.arg != "make")
    return body, _read(ast.Module(tree.body, [])), values


def _read(tree: ast.AST) -> frozenset[str]:
    """Return the names that a piece of source reads but does not define."""
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    bound = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    return frozenset(n.id for n in names) - bound


def _environment(function: Any, names: frozenset[str]) -> tuple[dict[str, str], list[str]]:
    """Return the imports, and the sources of the helpers, that these names need.

    function: the function in whose module the names are looked up.
    """
    imports: dict[str, str] = {}
    helpers: dict[str, str] = {}

    def need(name: str, scope: dict[str, Any]) -> None:
        if name in helpers or name not in scope or hasattr(builtins, name):
            return
        value = scope[name]
        if isinstance(value, types.ModuleType):
            full = value.__name__
            imports[full] = f"import {full}" if full == name else f"import {full} as {name}"
        elif isinstance(value, types.FunctionType) and value.__module__.startswith(_HERE):
            if value.__module__.endswith(".helpers"):
                helpers[name] = ""  # the helpers that it calls come first
                source = _undocumented(inspect.getsource(value))
                for inner in sorted(_read(ast.parse(source))):
                    need(inner, value.__globals__)
                del helpers[name]
                helpers[name] = source
            else:
                imports[name] = f"from {value.__module__} import {name}"
        elif hasattr(value, "__module__"):
            imports[name] = f"from {value.__module__} import {name}"

    scope = {"torch": torch, "functools": functools, **function.__globals__}
    for name in sorted({*names, "torch"}):
        need(name, scope)
    return imports, list(helpers.values())


def _undocumented(source: str) -> str:
    """Return the source of a helper without docstring and annotations.

    This keeps the scripts short.
    """
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    del tree.body[0]
    tree.returns = None
    for argument in tree.args.args:
        argument.annotation = None
    return ast.unparse(tree)


def _import_order(line: str) -> tuple[bool, str]:
    module = line.split()[1].split(".")[0]
    return module in ("torch", "steepest"), line


_HERE = __name__.rsplit(".", 1)[0]
