"""state_dict and load_state_dict, saving, resuming, copying."""

from __future__ import annotations

import copy
import io
import pickle  # noqa: F401  a case names it
from typing import Any

import torch

from ..examination import examination
from ..needs import argument, plain
from .helpers import differences, drive, flat

SAVED = "torch.optim.Optimizer.state_dict: "
LOADED = "torch.optim.Optimizer.load_state_dict: "


@examination("state-dict-form", SAVED + "a dict of state and param_groups", plain)
def state_dict_form(make: Any) -> None:
    """The state_dict has the keys state and param_groups, and refers to parameters by index."""
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = make([{"params": params[:1]}, {"params": params[1:]}])
    drive(optimizer, params, 1)
    saved = optimizer.state_dict()
    assert {"state", "param_groups"} <= saved.keys(), (
        f"the state_dict has the keys {sorted(saved)}, expected state and param_groups"
    )
    numbers = [group["params"] for group in saved["param_groups"]]
    assert numbers == [[0], [1, 2]], f"the groups hold {numbers}, expected [[0], [1, 2]]"
    assert saved["state"].keys() <= {0, 1, 2}, (
        f"state has the keys {list(saved['state'])}, expected no others than 0, 1, 2"
    )


@examination("state-dict-deterministic", SAVED + "two calls give the same result", plain)
def state_dict_deterministic(make: Any) -> None:
    """Two calls return the same values in the same order, and change nothing."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    drive(optimizer, [p], 2)
    one, two = optimizer.state_dict(), optimizer.state_dict()
    different = differences(flat(one), flat(two))
    assert not different, different[0]
    assert list(flat(one)) == list(flat(two)), "the order of the keys differs"


@examination("save-weights-only", "torch.load: weights_only=True is the default", plain)
def save_weights_only(make: Any) -> None:
    """torch.save, then torch.load(weights_only=True), gives the state_dict back."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    drive(optimizer, [p], 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    different = differences(flat(torch.load(file, weights_only=True)), flat(optimizer.state_dict()))
    assert not different, different[0]


@examination(
    "resume",
    LOADED + "training continues from the checkpoint",
    plain,
    cases={
        "float32": {"dtype": "torch.float32"},
        "float64": {"dtype": "torch.float64", "variants": "[{}]"},
        "bfloat16": {"dtype": "torch.bfloat16", "variants": "[{}]"},
    },
)
def resume(make: Any, dtype: Any, variants: Any) -> None:
    """50 steps, a checkpoint and 50 steps of a new optimizer equal 100 steps bit for bit."""
    for options in variants:
        straight = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
        original = make([straight], **options)
        drive(original, [straight], 50)
        p = torch.nn.Parameter(straight.detach().clone())
        file = io.BytesIO()
        torch.save(original.state_dict(), file)
        file.seek(0)
        resumed = make([p], **options)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        drive(original, [straight], 50, start=50)
        drive(resumed, [p], 50, start=50)
        ends = [flat([q, o.state_dict()]) for q, o in ((p, resumed), (straight, original))]
        different = differences(*ends)
        assert not different, f"50 + 50 steps differ from 100 steps with {options}: {different[0]}"


@examination("resume-scheduled", "torch.optim.lr_scheduler: state_dict", plain, argument("lr"))
def resume_scheduled(make: Any) -> None:
    """An optimizer and its scheduler, saved and loaded together, continue bit for bit."""
    ends = []
    for stop in (False, True):
        p = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = make([p], lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for t in range(8):
            if stop and t == 4:
                saved = copy.deepcopy([optimizer.state_dict(), scheduler.state_dict()])
                optimizer = make([p], lr=0.1)
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            drive(optimizer, [p], 1, start=t)
            scheduler.step()
        ends.append([p, optimizer.state_dict()["state"], scheduler.get_last_lr()])
    different = differences(flat(ends[1]), flat(ends[0]))
    assert not different, different[0]


@examination(
    "load-state-dtype", LOADED + "states keep their dtype or take their parameter's", plain
)
def load_state_dtype(make: Any) -> None:
    """The states of a bfloat16 parameter have the same dtypes after loading as before saving."""
    p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer, fresh = make([p]), make([p])
    drive(optimizer, [p], 2)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key, value in optimizer.state[p].items():
        if isinstance(value, torch.Tensor):
            loaded = fresh.state[p][key].dtype
            assert loaded == value.dtype, f"{key} is {loaded} after loading, was {value.dtype}"


@examination(
    "load-no-alias",
    "beyond torch: the caller may keep the loaded dict, or load it again",
    plain,
    promised=False,
)
def load_no_alias(make: Any) -> None:
    """Steps after loading do not change the loaded dict."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer, fresh = make([p]), make([p])
    drive(optimizer, [p], 2)
    saved = copy.deepcopy(optimizer.state_dict())
    before = flat(saved)
    fresh.load_state_dict(saved)
    drive(fresh, [p], 2, start=2)
    different = differences(flat(saved), before)
    assert not different, different[0]


@examination(
    "load-wrong-groups", LOADED + "a different number of groups or parameters is an error", plain
)
def load_wrong_groups(make: Any) -> None:
    """A checkpoint with a different number of parameters or groups raises ValueError and changes
    nothing."""
    p, q = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = make([p])
    drive(optimizer, [p], 1)
    before = flat(optimizer.state_dict())
    for other in (make([p, q]), make([{"params": [p]}, {"params": [q]}])):
        try:
            optimizer.load_state_dict(other.state_dict())
        except ValueError:
            pass
        else:
            raise AssertionError("a checkpoint of other groups was accepted, expected a ValueError")
        different = differences(flat(optimizer.state_dict()), before)
        assert not different, f"the refused checkpoint changed {different[0]}"


@examination(
    "load-missing-option",
    "beyond torch: a checkpoint older than an option takes the option's default",
    plain,
    promised=False,
)
def load_missing_option(make: Any) -> None:
    """A checkpoint that lacks an option can be loaded, and the next step uses the default."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    drive(optimizer, [p], 2)
    for name in optimizer.defaults:
        saved, fresh = copy.deepcopy(optimizer.state_dict()), make([p])
        del saved["param_groups"][0][name]
        try:
            fresh.load_state_dict(saved)
            drive(fresh, [p], 1, start=2)
        except Exception as error:
            raise AssertionError(
                f"a checkpoint without {name!r} raised {type(error).__name__}: {error}"
            ) from None


@examination(
    "load-other-shape",
    "beyond torch: a state of another shape raises an error at loading, not later or never",
    plain,
    promised=False,
)
def load_other_shape(make: Any) -> None:
    """A checkpoint with states of another shape raises ValueError or RuntimeError."""
    p, q = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3, 2))
    optimizer, other = make([p]), make([q])
    drive(other, [q], 1)
    held = [v for v in other.state[q].values() if isinstance(v, torch.Tensor) and v.numel() > 1]
    try:
        optimizer.load_state_dict(other.state_dict())
    except (ValueError, RuntimeError) as error:
        print("note: refused:", error)
    else:
        assert not held, "states of shape (3, 2) were accepted for a parameter of shape (2, 2)"


@examination(
    "copies",
    "torch.optim.Optimizer can be deep-copied and pickled together with its parameters",
    plain,
    cases={
        "deepcopy": {"copied": "copy.deepcopy"},
        "pickle": {"copied": "lambda x: pickle.loads(pickle.dumps(x))"},
    },
)
def copies(make: Any, copied: Any) -> None:
    """A copy of optimizer and parameter steps like the original, and does not change it."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([p])
    drive(optimizer, [p], 2)
    q, other = copied((p, optimizer))
    assert type(other) is type(optimizer), (
        f"the copy is a {type(other).__name__}, expected a {type(optimizer).__name__}"
    )
    assert other.param_groups[0]["params"][0] is q, (
        "the copied optimizer does not hold the copied parameter"
    )
    drive(optimizer, [p], 2, start=2)
    moved = flat([p, optimizer.state_dict()])
    drive(other, [q], 2, start=2)
    different = differences(flat([q, other.state_dict()]), moved)
    different += differences(flat([p, optimizer.state_dict()]), moved)
    assert not different, different[0]
