"""Modifiers: small functions that are composed with a rule before the rule is traced.

`cautious` acts after the rule. All others act before the rule, and take (p, g) and scalars.
"""

from ..ops import maximum, minimum, sign, sqrt, total, where


def clipped(p, g, *, clip_norm):
    """Clip the gradients of a group to a joint norm of clip_norm.

    Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1. As in
    torch.nn.utils.clip_grad_norm_, 1e-6 is added to the norm.
    """
    return p, g * minimum(1, clip_norm / (sqrt(total(g**2)) + 1e-6))


def maximize(p, g):
    """Ascend instead of descend."""
    return p, -g


def coupled(p, g, *, weight_decay):
    """L2 regularisation: the decay is added to the gradient before the rule sees it."""
    return p, g + weight_decay * p


def decoupled(p, g, *, lr, weight_decay):
    """Decoupled weight decay: multiply the parameter by 1 - lr * weight_decay.

    Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return p * (1 - lr * weight_decay), g


def fixed(p, g, *, lr, weight_decay):
    """AdaBelief's fixed_decay: multiply the parameter by 1 - weight_decay at every lr except 0.

    With lr=0 the parameter does not change, because torch.distributed.checkpoint makes a step with
    lr=0 to create the states, and this step must change no parameter.
    """
    return p * where(lr > 0, 1 - weight_decay, 1), g


def cautious(g, kept, moved):
    """Drop the components of the step that do not oppose the current gradient.

    Liang et al. 2024, arXiv:2411.16085. kept: the part of the new parameter that comes from the old
    parameter, weight decay included. This part is never dropped. moved: the part that the rule
    adds. The states of the rule are not changed.
    Differs from the paper, which multiplies the remaining components by (number of elements) /
    (number of elements that move + 1). Here they are not multiplied, so that the step of an element
    does not depend on other elements. A larger lr has the same effect on average.
    """
    return kept - maximum(-sign(moved) * sign(g), 0) * -moved
