"""Published search spaces by name, and knobs such as `1-beta1`.

A knob called `1-beta1` sets `beta1`: the optimizer gets one minus its value. So a range of such a
knob is log-uniform in the distance of `beta1` from 1.
"""

from __future__ import annotations

from collections.abc import Mapping

Space = Mapping[str, tuple[float, float]]
"""Knob -> (low, high) of its log-uniform search range."""
COMPLEMENT = "1-"

_SGD: Space = {"lr": (2e-2, 5.0), "1-momentum": (5e-3, 0.3), "weight_decay": (1e-7, 5e-5)}
_ALGOPERF: Mapping[str, Space] = {
    "adamw": {"lr": (1e-4, 1e-2), "1-beta1": (2e-2, 0.5), "weight_decay": (5e-3, 1.0)},
    "lamb": {"lr": (1e-4, 1e-2), "1-beta1": (5e-2, 0.3), "weight_decay": (1e-3, 1.0)},
    "momentum": _SGD,
    "nesterov": _SGD,
}
"""Rule -> its space, from a file tuning_search_space.json in the paper's repository,
mlcommons/algorithmic-efficiency. The files of `adamw` (commit 479835b), `lamb` (eafea99) and
`nesterov` (6634043) are in reference_algorithms/paper_baselines, and the file of `momentum`
(dabc749) is in baselines. Baselines are left out if their rule has other terms than the package's
rule (NAdamW, Adafactor), or if the package has no such rule (Shampoo, SAM). Settings that are not
options of an optimizer (the schedule, label smoothing, dropout) are left out too."""

NAMES: Mapping[str, str] = {
    "lr-only": "the learning rate alone, over the range that the entry declares",
    "algoperf": "the baselines of AlgoPerf (Dahl et al. 2023, arXiv:2306.07179)",
}
"""Name of a space -> what it tunes, or the source of its ranges."""


def named(name: str, base: str, declared: Space) -> Space | None:
    """The space called `name` for the optimizer `base`; None if it does not cover the optimizer.

    declared: the ranges that the entry declares.
    """
    if name == "lr-only":
        return {"lr": declared["lr"]} if "lr" in declared else None
    return _ALGOPERF.get(base)


def option_of(knob: str) -> str:
    """The option that a knob sets: `beta1` for `beta1` and for `1-beta1`."""
    return knob.removeprefix(COMPLEMENT)


def twin(knob: str) -> str:
    """The other knob that sets the same option."""
    return option_of(knob) if knob.startswith(COMPLEMENT) else COMPLEMENT + knob


def options(hyper: Mapping[str, float]) -> dict[str, float]:
    """Convert values of knobs to values of options: `1-beta1` of 0.1 becomes `beta1` of 0.9."""
    return {option_of(k): 1 - v if k.startswith(COMPLEMENT) else v for k, v in hyper.items()}
