"""The examinations as a pytest suite, for the tests of any package that has an optimizer.

    from steepest.check.suite import Suite

    class TestMine(Suite):
        optimizer = Mine

Each examination is a test: one that does not apply is skipped with its reason, one that fails
prints what was found and the reproduction.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from .doctor import examinations, examine


class Suite:
    """A test for each examination; a subclass says of what.

    optimizer: the class (or whatever `examine` takes). options: arguments of its constructor.
    known: name of an examination -> why its failure is accepted; it must fail then.
    """

    optimizer: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}
    known: ClassVar[dict[str, str]] = {}

    @pytest.mark.parametrize("name", [each.name for each in examinations()])
    def test_examination(self, name: str) -> None:
        """One examination; `-k NAME` chooses."""
        (found,) = examine(self.optimizer, name, self.options)
        reason = self.known.get(name)
        if found.outcome == "not applicable":
            pytest.skip(found.detail)
        if reason and found.outcome == "pass":
            pytest.fail(f"{name} passes now; take it out of `known`", pytrace=False)
        if reason and found.outcome == "fail":
            pytest.xfail(reason)
        if found.outcome == "fail":
            pytest.fail(f"{found.about}\n{found.detail}\n\n{found.reproduction}", pytrace=False)
