"""Strategies around any torch optimizer: batch size, data order, gradient noise, early stopping.

`import steepest` does not import this package: write `from steepest import strategies`.
"""

from . import pacing as pacing
from .adaptive import AdaptiveBatch, best_batch, expected_loss, per_sample
from .growth import BatchGrowth, noise_scale
from .loading import Loader
from .noise import GradientNoise
from .orders import Curriculum, Levels, Shuffled, difficulty
from .stopping import EarlyStopping

__all__ = [
    "AdaptiveBatch",
    "BatchGrowth",
    "Curriculum",
    "EarlyStopping",
    "GradientNoise",
    "Levels",
    "Loader",
    "Shuffled",
    "best_batch",
    "difficulty",
    "expected_loss",
    "noise_scale",
    "pacing",
    "per_sample",
]
