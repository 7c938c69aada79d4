"""Learning rate schedulers: all of torch's, more that torch lacks, and a range test."""

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from .ranges import Interval, RangeTest, range_test
from .restarts import RestartFromBest
from .rising import NoamLR, WarmupLR
from .shaped import WSDLR, CosineLR, OptionSchedule, ramp

__all__ = [
    "WSDLR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineLR",
    "CyclicLR",
    "ExponentialLR",
    "Interval",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "NoamLR",
    "OneCycleLR",
    "OptionSchedule",
    "PolynomialLR",
    "RangeTest",
    "ReduceLROnPlateau",
    "RestartFromBest",
    "SequentialLR",
    "StepLR",
    "WarmupLR",
    "ramp",
    "range_test",
]
