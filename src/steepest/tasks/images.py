"""Classification of images: scikit-learn's digits, and files in the IDX format of MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from steepest.errors import BadCall
from steepest.tasks.task import CPU, Samples, Setup, Task

Split = dict[str, tuple[Tensor, Tensor]]

TRAIN, VALIDATION, TEST = 800, 400, 597
"""How many digits each split has. The training split is small, so no entry reaches 100 %."""
BATCH = 32
IDX_VALIDATION, IDX_BATCH, IDX_STEPS, IDX_EVERY = 5000, 64, 1000, 200
SWITCHES = ("batchnorm", "dropout")
EVALUATED = 1000
"""How many images are evaluated at once."""


@lru_cache(maxsize=2)
def digits(train: int = TRAIN, validation: int = VALIDATION, seed: int = 0) -> Split:
    """scikit-learn's 1,797 digits: split -> (images [n, 1, 8, 8] in [0, 1], classes [n]).

    train, validation: how many images these two splits have. They are drawn at random, from `seed`.
    All other images are in the split "test". An empty split is left out.
    """
    from sklearn.datasets import load_digits  # slow to import

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    images = torch.tensor(pixels[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(classes[order])
    last = train + validation
    ends = {"train": (0, train), "validation": (train, last), "test": (last, len(classes))}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in ends.items() if a < b}


def chance(data: Split) -> float:
    """The accuracy of always predicting the commonest class: the higher of validation and test."""
    evaluated = (data[split][1] for split in ("validation", "test"))
    return max(labels.bincount().max().item() / len(labels) for labels in evaluated)


def hash_of(splits: Callable[[], Split]) -> str:
    """sha256 of all images and labels."""
    digest = hashlib.sha256()
    for images, labels in splits().values():
        digest.update(images.numpy().tobytes())
        digest.update(labels.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def _network(side: int, hidden: int, batchnorm: bool, dropout: float) -> nn.Module:
    """Two convolutions and one or two linear layers.

    side: width and height of the images, in pixels. hidden: width of a hidden linear layer before
    the last layer; 0 for no hidden layer.
    """
    flat = 32 * (side // 4) ** 2
    # made first: the order in which layers are made decides their initial weights
    head = [nn.Linear(flat, hidden), nn.ReLU()] if hidden else []
    layers: list[nn.Module] = []
    for channels, width in ((1, 16), (16, 32)):
        # a stride, because pooling would take twice the time
        layers.append(nn.Conv2d(channels, width, 3, stride=2, padding=1))
        if batchnorm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
    layers += [nn.Flatten(), *head]
    if dropout > 0:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden or flat, 10))


def _setup(
    splits: Callable[[], Split],
    batch: int,
    hidden: int,
    seed: int,
    batchnorm: bool = False,
    dropout: float = 0.0,
    device: torch.device = CPU,
) -> Setup:
    torch.manual_seed(seed)
    data = {split: (x.to(device), y.to(device)) for split, (x, y) in splits().items()}
    # made on the CPU, so that its initial weights are the same on every device
    model = _network(data["train"][0].shape[-1], hidden, batchnorm, dropout).to(device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(model: nn.Module, split: str) -> float:
        images, labels = data[split]
        scores = torch.cat([model(chunk) for chunk in images.split(EVALUATED)])
        if not scores.isfinite().all():
            return float("nan")
        return (scores.argmax(1) == labels).sum().item() / len(labels)

    samples = Samples(data["train"], batch)
    return Setup(model, samples.batched(seed), loss, evaluate, samples=samples)


DIGITS = Task(
    name="digits",
    metric="accuracy",
    maximize=True,
    worst=46 / VALIDATION,  # the value of `chance(digits())`, without loading the data
    target=0.92,
    steps=200,
    every=TRAIN // BATCH,
    test_size=TEST,
    proportion=True,
    build=partial(_setup, digits, BATCH, 0),
    data_hash=partial(hash_of, digits),
    switches=SWITCHES,
)


def read_idx(path: Path) -> np.ndarray:
    """Read the array of unsigned bytes in an IDX file, gzipped or not.

    Raises BadCall for any other file.

    Format: http://yann.lecun.com/exdb/mnist/ : two zero bytes, type 8, the number of dimensions,
    each dimension as a big-endian 32-bit integer, then the bytes.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise BadCall(
            f"cannot read '{path}' ({error}): expected the published file; download it again"
        ) from error
    head = 4 + 4 * raw[3] if len(raw) > 3 else 4
    shape = tuple(np.frombuffer(raw[4:head][: (len(raw[4:head]) // 4) * 4], ">u4").tolist())
    if raw[:3] != b"\0\0\x08" or len(raw) != head + math.prod(shape):
        raise BadCall(
            f"'{path}' is cut short ({len(raw):,} bytes) or is not an IDX file of bytes: expected "
            f"the published file; download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _read_pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Read the images and the labels from the two files with the prefix: "train" or "t10k"."""
    arrays: list[np.ndarray] = []
    for ending, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
        names = [f"{prefix}-{ending}.gz", f"{prefix}-{ending}"]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise BadCall(
                f"--data {folder}: the folder has no {names[0]} (or {names[1]}); add the file"
            )
        array = read_idx(path)
        if array.ndim != dimensions or len(array) == 0:
            raise BadCall(
                f"'{path}' has the shape {array.shape}: expected {dimensions} dimensions and at "
                f"least one image or label; download the published file"
            )
        arrays.append(array)
    images, labels = arrays
    if len(images) != len(labels) or labels.max() > 9 or images.shape[1:] != (28, 28):
        raise BadCall(
            f"--data {folder}: {prefix} has images of shape {images.shape}, and labels of shape "
            f"{labels.shape} with values up to {labels.max()}: expected images of 28 x 28, as many "
            f"labels as images, and labels from 0 to 9"
        )
    pixels = torch.from_numpy(images / np.float32(255))[:, None]
    return pixels, torch.tensor(labels, dtype=torch.long)


def idx_task(name: str, folder: Path) -> Task:
    """Make a task that trains 106,000 parameters on the four published files in `folder`."""
    images, labels = _read_pair(folder, "train")
    if len(images) <= IDX_VALIDATION:
        raise BadCall(
            f"--data {folder}: the folder has {len(images)} training images, expected more than "
            f"5,000"
        )
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    indices = {"validation": order[:IDX_VALIDATION], "train": order[IDX_VALIDATION:]}
    data = {split: (images[rows], labels[rows]) for split, rows in indices.items()}
    data["test"] = _read_pair(folder, "t10k")
    return Task(
        name=name,
        metric="accuracy",
        maximize=True,
        worst=chance(data),
        target=0.85 if name == "fashion-mnist" else 0.97,
        steps=IDX_STEPS,
        every=IDX_EVERY,
        test_size=len(data["test"][1]),
        proportion=True,
        build=partial(_setup, lambda: data, IDX_BATCH, 64),
        data_hash=lru_cache(partial(hash_of, lambda: data)),
        switches=SWITCHES,
    )
