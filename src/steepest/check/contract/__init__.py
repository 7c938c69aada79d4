"""The contract of torch.optim as examinations.

The report lists the examinations in the order of these imports.
"""

# isort: off
from . import construction as construction
from . import stepping as stepping
from . import gradients as gradients
from . import tensor_types as tensor_types
from . import memory as memory
from . import checkpoints as checkpoints
from . import hooks as hooks
from . import surroundings as surroundings
from . import paths as paths
