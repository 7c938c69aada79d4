"""Parts of a recipe: what an entry can add to an optimizer, as in `adam+warmup+noise`.

To add a part, write a class in one of these files, and add it to `PARTS`. The class states its
facts as class attributes (`part.Part` lists them) and overrides the hooks that it needs.
"""

from __future__ import annotations

from steepest.training.parts import around, batches, clip, noise, orders, rates, stopping, switches
from steepest.training.parts.part import Knob as Knob
from steepest.training.parts.part import Part as Part

PARTS: dict[str, Part] = {
    part.name: part()
    for part in (
        rates.Warmup,
        rates.Cosine,
        rates.Step,
        rates.Exponential,
        rates.Polynomial,
        rates.Sgdr,
        rates.Triangular,
        rates.Triangular2,
        rates.ExpRange,
        rates.OneCycle,
        rates.Noam,
        switches.BatchNorm,
        switches.Dropout,
        batches.BatchGrowth,
        batches.AdaptiveBatch,
        batches.FullBatch,
        batches.OneSample,
        orders.Curriculum,
        orders.AntiCurriculum,
        orders.RandomCurriculum,
        noise.Noise,
        clip.Clip,
        around.Sam,
        around.Asam,
        around.Lookahead,
        stopping.EarlyStopping,
        stopping.Restarts,
    )
}
"""Name -> part, in the order of the parts in an entry's name."""
