"""The contract of torch.optim, an examination each; imported in the order of the report."""

# isort: off
from . import construction, stepping, gradients, kinds, memory, checkpoints
from . import hooks, surroundings, paths

__all__ = [
    "checkpoints", "construction", "gradients", "hooks", "kinds", "memory", "paths", "stepping",
    "surroundings",
]  # fmt: skip
