"""Parameters and gradients of every layout and dtype, complex, sparse or empty."""

from __future__ import annotations

from typing import Any

import torch

from ..examination import examination
from ..needs import coarse, descending, halves, plain, separate, shape, sparse_taken
from .helpers import drive

TYPES = "torch.optim steps any strided floating-point tensor; "
_LAYOUTS = {
    "strided": "torch.ones(4, 6)[:, ::2]",
    "transposed": "torch.ones(3, 4).t()",
    "channels-last": "torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last)",
    "vector": "torch.ones(5)",
    "scalar": "torch.ones(())",
}


@examination(
    "layout",
    TYPES + "tensor views: strides are not part of a tensor's value",
    plain,
    cases={name: {"start": expression} for name, expression in _LAYOUTS.items()},
    case_needs={"channels-last": shape(2, 3, 2, 2), "vector": shape(5), "scalar": shape()},
)
def layout(make: Any, start: Any) -> None:
    """A parameter of any layout steps like a contiguous parameter, and keeps its strides."""
    p, contiguous = torch.nn.Parameter(start), torch.nn.Parameter(start.clone().contiguous())
    strides = p.stride()
    for q in (p, contiguous):
        optimizer = make([q])
        for t in range(3):
            g = torch.arange(1.0, 1 + start.numel()).reshape(start.shape) - 2 * t
            q.grad = torch.empty_like(q).copy_(g) if q is p else g
            optimizer.step()
    assert p.stride() == strides, f"the strides {strides} became {p.stride()}"
    torch.testing.assert_close(p, contiguous)


@examination(
    "gradient-layout",
    TYPES + "tensor views: a gradient's strides need not be its parameter's",
    plain,
    cases={
        "transposed": {"relaid": "lambda g: g.t().contiguous().t()"},
        "strided": {"relaid": "lambda g: torch.stack([g, g], dim=-1)[..., 0]"},
        "expanded": {"relaid": "lambda g: g.mean().expand(g.shape)"},
    },
)
def gradient_layout(make: Any, relaid: Any) -> None:
    """A gradient with other strides steps like a contiguous gradient with the same values."""
    p: Any = torch.nn.Parameter(torch.ones(3, 4))
    contiguous = torch.nn.Parameter(torch.ones(3, 4))
    one, two = make([p]), make([contiguous])
    for t in range(3):
        p.grad = relaid(torch.arange(1.0, 13).reshape(3, 4) - 5 * t)
        contiguous.grad = p.grad.clone(memory_format=torch.contiguous_format)
        one.step()
        two.step()
    torch.testing.assert_close(p, contiguous)


@examination("empty-parameter", TYPES + "a shape may have zeros", plain, shape(0, 2))
def empty_parameter(make: Any) -> None:
    """A parameter without elements does not disturb the others, and its state can be saved."""
    empty, p, alone = (torch.nn.Parameter(torch.ones(n, 2)) for n in (0, 3, 3))
    optimizer = make([empty, p])
    for _ in range(2):
        empty.grad, p.grad = torch.ones(0, 2), torch.full((3, 2), 0.5)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    single = make([alone])
    for _ in range(2):
        alone.grad = torch.full((3, 2), 0.5)
        single.step()
    torch.testing.assert_close(p, alone)


def steps_float16(subject: Any) -> str | None:
    """Requires that the class takes float16 and makes steps large enough to change float16."""
    return halves(subject) or coarse(subject)


@examination(
    "dtype",
    TYPES + "every floating-point dtype",
    plain,
    descending,
    cases={name: {"dtype": f"torch.{name}"} for name in ("float64", "bfloat16", "float16")},
    case_needs={"bfloat16": coarse, "float16": steps_float16},
)
def dtype(make: Any, fast: Any, dtype: Any) -> None:
    """A parameter stays finite, moves against the gradient, and keeps its dtype."""
    p = torch.nn.Parameter(torch.full((3, 2), 0.01, dtype=dtype))
    start = p.detach().clone()
    optimizer = make([p], **fast)
    for _ in range(10):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    assert p.dtype == dtype, f"the parameter became {p.dtype}, expected {dtype}"
    assert torch.isfinite(p).all(), f"the parameter became {p.tolist()}"
    assert (p < start).all(), (
        f"after ten gradients of 0.5 {start.tolist()} became {p.tolist()}, expected smaller values"
    )


@examination(
    "float16-small-gradients",
    "beyond torch: float16 rounds squares below 6e-8 and an eps of 1e-8 to zero",
    plain,
    halves,
    promised=False,
    cases={"1e-4": {"size": "1e-4"}, "0": {"size": "0.0"}},
)
def float16_small_gradients(make: Any, size: Any) -> None:
    """A float16 parameter stays finite if all gradients are small or zero."""
    p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float16))
    optimizer = make([p])
    for _ in range(3):
        p.grad = torch.full_like(p, size)
        optimizer.step()
    assert torch.isfinite(p).all(), f"after gradients of {size} the parameter is {p.tolist()}"


@examination("mixed-dtypes", TYPES + "parameters of several dtypes in one group", plain, separate)
def mixed_dtypes(make: Any) -> None:
    """Parameters of three dtypes in one group step as in separate optimizers."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    joint, alone = ([torch.nn.Parameter(torch.ones(2, 2, dtype=d)) for d in dtypes] for _ in "ab")
    drive(make(joint), joint, 4)
    single = [make([p]) for p in alone]
    for t in range(4):
        drive(single[0], alone, 1, start=t)
        single[1].step()
        single[2].step()
    for actual, expected in zip(joint, alone, strict=True):
        torch.testing.assert_close(actual, expected, msg=lambda m, d=actual.dtype: f"{d}: {m}")


@examination("complex", "torch.optim: complex numbers are pairs, as in torch.view_as_real", plain)
def complex_parameter(make: Any) -> None:
    """A complex parameter steps like its pairs of real numbers, or an error names complex."""
    start = torch.tensor([[1 + 2j, -1 - 1j], [0.5 - 1j, 3j]])
    gradient = torch.tensor([[0.5 - 1j, 2j], [1 + 1j, -0.25 + 0.5j]])
    p = torch.nn.Parameter(start.clone())
    pairs = torch.nn.Parameter(torch.view_as_real(start).clone())
    refusal = ""
    try:
        optimizer = make([p])
        for t in range(3):
            p.grad = gradient * (1 - t)
            optimizer.step()
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    if refusal:
        assert "complex" in refusal.lower(), (
            f"a complex parameter raised {refusal}, expected an error that names complex"
        )
        assert torch.equal(p, start), "the refusal came after the parameter was changed"
        print("note: refused:", refusal)
    else:
        optimizer = make([pairs])
        for t in range(3):
            pairs.grad = torch.view_as_real(gradient * (1 - t)).clone()
            optimizer.step()
        torch.testing.assert_close(torch.view_as_real(p), pairs)
        print("note: stepped as pairs of real numbers")


@examination("sparse", "torch.sparse: SGD, Adagrad and SparseAdam take sparse gradients", plain)
def sparse(make: Any) -> None:
    """A sparse gradient, even with duplicate indices, steps like the dense gradient, or an error
    names sparse.

    This error comes before any parameter of the group changes, even if its gradient is dense.
    """
    before, p, twin = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3))
    optimizer, other = make([before, p]), make([twin])
    rows, values = torch.tensor([[0, 2, 0, 1]]), torch.arange(1.0, 9).reshape(4, 2)
    refusal = ""
    try:
        for _ in range(2):
            before.grad = torch.full((3, 2), 0.5)
            p.grad = torch.sparse_coo_tensor(rows, values, (3, 2), check_invariants=True)
            optimizer.step()
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    if refusal:
        assert "sparse" in refusal.lower(), (
            f"a sparse gradient raised {refusal}, expected an error that names sparse"
        )
        assert torch.equal(p, torch.ones(3, 2)), "the refusal came after the parameter was changed"
        other = before.tolist()
        assert other == [[1.0, 1.0]] * 3, f"a refused step changed another parameter to {other}"
        print("note: refused:", refusal)
    else:
        for _ in range(2):
            twin.grad = torch.sparse_coo_tensor(
                rows, values, (3, 2), check_invariants=True
            ).to_dense()
            other.step()
        torch.testing.assert_close(p, twin)
        print("note: stepped like the dense gradient")


@examination(
    "sparse-rows",
    "torch.optim.SparseAdam, SGD and Adagrad: sparse gradients",
    sparse_taken,
    descending,
)
def sparse_rows(make: Any, quiet_options: Any) -> None:
    """Rows of an embedding that have a gradient move against it. All other rows do not move."""
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = make([weight], **quiet_options)
    for _ in range(3):
        optimizer.zero_grad()
        rows = torch.nn.functional.embedding(torch.tensor([0, 2, 2]), weight, sparse=True)
        rows.sum().backward()
        optimizer.step()
    moved = (weight.detach() < 1).all(dim=1).tolist()
    assert moved == [True, False, True, False], f"the embedding became {weight.tolist()}"
    assert torch.equal(weight[1::2], torch.ones(2, 2)), f"the embedding became {weight.tolist()}"
