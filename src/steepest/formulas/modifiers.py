"""What stands before a rule: small functions of (p, g) and scalars, composed before the trace."""

from .words import where


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
