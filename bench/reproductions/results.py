"""The results of a reproduction: numbers per seed, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from steepest.statistics import inference
from steepest.tasks import images


@dataclass
class Results:
    """`values` and `pairs` (paired differences) map a name to one number per seed."""

    values: dict[str, list[float]] = field(default_factory=dict)
    pairs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: Sequence[float]) -> None:
        self.values[name] = [float(v) for v in values]

    def compare(self, metric: str, baseline: str, others: Sequence[str]) -> None:
        """Add the paired differences of a metric: each of the others minus the baseline."""
        base = self.values[f"{metric}: {baseline}"]
        for other in others:
            d = inference.paired(self.values[f"{metric}: {other}"], base)
            self.pairs[f"{metric}: {other} - {baseline}"] = d.tolist()

    def rows(self) -> list[dict[str, Any]]:
        """Mean and spread of all names; for pairs also interval and p value, as in a race."""
        rows = [_row(name, values) for name, values in self.values.items()]
        for name, comparison in inference.compare(self.pairs).items():
            rows.append(
                _row(name, self.pairs[name])
                | {"low": comparison.low, "high": comparison.high, "level": comparison.level}
                | {"p_holm": comparison.p_holm, "apart": comparison.claim}
            )
        return rows

    def text(self) -> str:
        """The rows as a table."""
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
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"name": name, "n": len(values), "mean": mean, "sd": sd, "values": values}


def digits(seed: int, train: int, validation: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """The digits with flat images [n, 64], split differently for each seed; the rest is test."""
    splits = images.digits(train, validation, seed)
    return {name: (pixels.flatten(1), classes) for name, (pixels, classes) in splits.items()}
