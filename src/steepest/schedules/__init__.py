"""The learning rate over time: torch's schedulers, those that torch lacks, and a range test."""

from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from .ranges import Interval, RangeTest, range_test
from .restarts import RestartFromBest
from .rising import NoamLR, WarmupLR

__all__ = [
    "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "Interval",
    "LinearLR", "MultiStepLR", "NoamLR", "OneCycleLR", "PolynomialLR", "RangeTest",
    "ReduceLROnPlateau", "RestartFromBest", "StepLR", "WarmupLR", "range_test",
]  # fmt: skip
