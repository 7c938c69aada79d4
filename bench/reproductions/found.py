"""What a reproduction found: numbers per seed, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from steepest.race import statistics
from steepest.tasks import images


@dataclass
class Found:
    """`values` and `pairs` (paired differences) have a number per seed under each name."""

    values: dict[str, list[float]] = field(default_factory=dict)
    pairs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: Sequence[float]) -> None:
        self.values[name] = [float(v) for v in values]

    def compare(self, what: str, one: str, others: Sequence[str]) -> None:
        """Add `what` of each of the others minus that of one."""
        for other in others:
            d = statistics.paired(self.values[f"{what}: {other}"], self.values[f"{what}: {one}"])
            self.pairs[f"{what}: {other} - {one}"] = d.tolist()

    def rows(self) -> list[dict[str, Any]]:
        """Mean and spread of each; intervals and p values of the pairs, as the race judges them."""
        rows = [_row(name, values) for name, values in self.values.items()]
        for name, judged in statistics.compare(self.pairs).items():
            rows.append(
                _row(name, self.pairs[name])
                | {"low": judged.low, "high": judged.high, "level": judged.level}
                | {"p_holm": judged.p_holm, "apart": judged.claim}
            )
        return rows

    def text(self) -> str:
        rows = self.rows()
        width = max(len(row["name"]) for row in rows)
        lines = [f"{'':{width}}   n       mean         sd  interval"]
        for row in rows:
            sd = "" if row["sd"] is None else f"{row['sd']:.3g}"
            line = f"{row['name']:{width}} {row['n']:3} {row['mean']:10.5g} {sd:>10}"
            if row.get("low") is not None:
                line += f"  [{row['low']:+.4g}, {row['high']:+.4g}] {100 * row['level']:.3g} %"
            if row.get("p_holm") is not None:
                line += f"  p={row['p_holm']:.2g}" + (", told apart" if row["apart"] else "")
            lines.append(line)
        return "\n".join(lines)


def _row(name: str, values: list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"name": name, "n": len(values), "mean": float(np.mean(values)), "sd": sd} | {
        "values": values
    }


def digits(seed: int, train: int, validation: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """The digits with flat images [n, 64], split differently for each seed; the rest is test."""
    splits = images.digits(train, validation, seed)
    return {name: (pixels.flatten(1), classes) for name, (pixels, classes) in splits.items()}
