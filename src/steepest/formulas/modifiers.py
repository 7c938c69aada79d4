"""What stands around a rule: small functions composed with it before the trace.

Those before it take (p, g) and scalars; `cautious` stands after it.
"""

from ..ops import maximum, minimum, sign, sqrt, total, where


def clipped(p, g, *, clip_norm):
    """The gradients of a group no longer than clip_norm together: Pascanu, Mikolov and Bengio 2013,
    arXiv:1211.5063, algorithm 1. As torch.nn.utils.clip_grad_norm_, 1e-6 is added to their norm.
    """
    return p, g * minimum(1, clip_norm / (sqrt(total(g**2)) + 1e-6))


def maximize(p, g):
    """Ascend instead of descend."""
    return p, -g


def coupled(p, g, *, weight_decay):
    """L2 regularisation: the decay enters the gradient, and whatever the rule makes of it."""
    return p, g + weight_decay * p


def decoupled(p, g, *, lr, weight_decay):
    """Loshchilov and Hutter 2019, arXiv:1711.05101: the parameter itself shrinks, by lr times
    decay.
    """
    return p * (1 - lr * weight_decay), g


def fixed(p, g, *, lr, weight_decay):
    """AdaBelief's fixed_decay: the parameter shrinks by the same share whatever lr is.

    Except at lr 0, where torch.distributed.checkpoint steps to make a state and nothing may move.
    """
    return p * where(lr > 0, 1 - weight_decay, 1), g


def cautious(g, kept, moved):
    """Liang et al. 2024, arXiv:2411.16085: drop the components of the step that do not oppose the
    current gradient.

    kept: what the rule leaves of the old parameter, decay included, which is never dropped. moved:
    what it adds to that. The averages are those of the rule. Differs from the paper: it multiplies
    what is left of the step by (number of elements) / (number that move + 1), here the rest keeps
    its length, so that an element's step depends on no other; a larger lr does the same on average.
    """
    return kept - maximum(-sign(moved) * sign(g), 0) * -moved
