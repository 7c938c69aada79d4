"""The meanings of states and options. `steepest.convert` compares the meanings of two rules.

The meaning of a state is a tuple: the quantity that the state holds, and the scalar that is its
decay rate. If the state equals this quantity only up to a factor and a shift, the tuple has a third
item, a function. `function(scalars, t)` returns the factor and the shift at step t. One of the two
is nan if the state cannot be converted with these scalars. Some states have no meaning, because no
other rule has the same quantity: AdaBelief's exp_avg_var is an average of (g - m)**2, RMSprop's
momentum_buffer is a sum of scaled gradients, and Adagrad's sum has no decay rate.
"""

FIRST, SECOND, LARGEST = "the average of g", "the average of g**2", "its largest value"
LENGTH = {"lr": "a length", "eps": "beside the root"}
SHARE = {"lr": "a share of the gradient", "momentum": "of gradients"}
NONE = float("nan")


def total(scalars, t):
    """Factor of the buffer b = momentum * b + g. Without dampening it is 1 / (1 - momentum)."""
    mu = scalars["momentum"]
    return (1 / (1 - mu) if scalars.get("dampening", 0.0) == 0 and mu < 1 else NONE), 0.0


def move(scalars, t):
    """Factor of the last move: that of `total` times the current lr, as if lr never changed."""
    lr = scalars["lr"]
    return (total(scalars, t)[0] * lr if lr > 0 else NONE), 0.0


def back(scalars, t):
    """Factor of the last move with its sign reversed."""
    return -move(scalars, t)[0], 0.0


def with_eps(scalars, t):
    """Factor and shift of an average to which eps is added at every step."""
    beta = scalars["beta2"]
    return 1.0, NONE if t is None else scalars["eps"] * (1 - beta**t) / (1 - beta)


AVERAGES = {"m": (FIRST, "beta1"), "v": (SECOND, "beta2")}
TOTAL, MOVE, BACK = ((FIRST, "momentum", form) for form in (total, move, back))
