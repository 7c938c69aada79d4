"""Modifiers: small functions that are composed with a rule before it is traced.

Those that act before the rule take (p, g) and scalars; `cautious` acts after it.
"""

from ..ops import maximum, minimum, sign, sqrt, total, where


def clipped(p, g, *, clip_norm):
    """Clip the gradients of a group to a joint norm of clip_norm.

    Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1. As in
    torch.nn.utils.clip_grad_norm_, 1e-6 is added to their norm.
    """
    return p, g * minimum(1, clip_norm / (sqrt(total(g**2)) + 1e-6))


def maximize(p, g):
    """Ascend instead of descend."""
    return p, -g


def coupled(p, g, *, weight_decay):
    """L2 regularisation: the decay is added to the gradient before the rule sees it."""
    return p, g + weight_decay * p


def decoupled(p, g, *, lr, weight_decay):
    """Decoupled weight decay: the parameter itself shrinks, by lr * weight_decay.

    Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return p * (1 - lr * weight_decay), g


def fixed(p, g, *, lr, weight_decay):
    """AdaBelief's fixed_decay: the parameter shrinks by the same share at every lr but 0.

    At lr 0 it does not shrink: torch.distributed.checkpoint makes a step at lr 0 to create the
    states, and this step must move nothing.
    """
    return p * where(lr > 0, 1 - weight_decay, 1), g


def cautious(g, kept, moved):
    """Drop the components of the step that do not oppose the current gradient.

    Liang et al. 2024, arXiv:2411.16085. kept: what the rule leaves of the old parameter, decay
    included; it is never dropped. moved: what the rule adds to it. The rule's averages do not
    change.
    Differs from the paper, which multiplies the rest of the step by (number of elements) / (number
    that move + 1). Here the rest is not multiplied, so that an element's step depends on no other
    element. A larger lr has the same effect on average.
    """
    return kept - maximum(-sign(moved) * sign(g), 0) * -moved
