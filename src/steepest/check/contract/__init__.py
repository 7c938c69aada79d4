"""The contract of torch.optim, an examination each; imported in the order of the report."""

# isort: off
from . import construction, stepping, gradients, tensor_types, memory, checkpoints
from . import hooks, surroundings, paths

__all__ = [
    "checkpoints", "construction", "gradients", "hooks", "memory", "paths", "stepping", "tensor_types",
    "surroundings",
]  # fmt: skip
