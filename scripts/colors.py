"""Searches for the colours of lines in `steepest.report.styles`, and prints them.

    python scripts/colors.py light SECONDS
    python scripts/colors.py dark SECONDS

Eleven colours, ink and grey shall differ as much as possible: the least distance of any two
counts, with normal sight and with protanopia, deuteranopia and tritanopia (Machado et al. 2009,
severity 1). A distance is the smaller of two: CIEDE2000 in units of 14.5 (Sharma et al. 2005), and
OKLab with its corrected lightness in units of 0.095 (Ottosson 2020, 2021). Each of the two accepts
colours that the other does not. With normal sight, distances are divided by 1.3. Every colour has a
contrast of at least 3.05 to the paper, and a CIELAB lightness that is not mistaken for ink.

The search starts from random colours of a grid and replaces one of the closest pair until that
helps no more; then it leaves the grid in steps that get smaller. It starts again until its time is
over. More time finds distances that are a few percent larger.
"""

from __future__ import annotations

import sys
import time

import numpy as np

COUNT = 11
SCHEMES = {  # paper, ink, grey; least and most lightness
    "light": (("#ffffff", "#1b1f24", "#8a8f94"), (20, 62)),
    "dark": (("#14171a", "#e3e6ea", "#7d848c"), (40, 92)),
}
SIGHT = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.01182, 0.04294, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.3039]],
    ]
)  # fmt: skip
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175],
     [0.0193339, 0.119192, 0.9503041]]
)  # fmt: skip
CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
OKLAB = np.array(
    [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.808675766]]
)  # fmt: skip


def parse(*texts: str) -> np.ndarray:
    """Texts such as "#1b1f24" as rows of three numbers, 0 to 255."""
    return np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in texts], float)


def linear(rgb: np.ndarray) -> np.ndarray:
    """Linear light, 0 to 1."""
    share = rgb / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def coordinates(rgb: np.ndarray) -> np.ndarray:
    """(n, 4, 6): CIELAB and OKLab of n colours, as four kinds of sight see them."""
    seen = np.clip(np.einsum("vij,nj->nvi", SIGHT, linear(rgb)), 0, 1)
    t = seen @ XYZ.T / XYZ.sum(1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    oklab = np.cbrt(seen @ CONES.T) @ OKLAB.T
    light = oklab[..., 0] * 1.206 / 1.03 - 0.206
    oklab[..., 0] = (light + np.sqrt(light**2 + 4 * 0.03 * (light + 0.206))) / 2
    return np.concatenate([np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1), oklab], -1)


def ciede2000(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The colour difference of CIELAB coordinates, along the last axis."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(c**7 / (c**7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, h1 + turn / 2
    cos = [np.cos(np.radians(k * hue - at)) for k, at in ((1, 30), (2, 0), (3, -6), (4, 63))]
    t = 1 + np.tensordot([-0.17, 0.24, 0.32, -0.2], np.array(cos), 1)
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    angle = 60 * np.exp(-((((hue % 360) - 275) / 25) ** 2))
    mixed = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(angle))
    return np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + mixed * dc * dh, 0))


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of each of `some` to each of `others`, for the sight that is worst at it."""
    one, other = some[:, None], others[None]
    oklab = np.linalg.norm(one[..., 3:] - other[..., 3:], axis=-1) / 0.095
    both = np.minimum(ciede2000(one[..., :3], other[..., :3]) / 14.5, oklab)
    return (both / [1.3, 1, 1, 1]).min(-1)


class Scheme:
    """The colours that are allowed on one paper."""

    def __init__(self, name: str) -> None:
        (paper, *fixed), self._lightness = SCHEMES[name]
        self._paper, self.fixed = self._luminance(parse(paper)), coordinates(parse(*fixed))

    @staticmethod
    def _luminance(rgb: np.ndarray) -> np.ndarray:
        return linear(rgb) @ [0.2126, 0.7152, 0.0722] + 0.05

    def allowed(self, rgb: np.ndarray) -> np.ndarray:
        """Those colours that have enough contrast and an allowed lightness."""
        own, lightness = self._luminance(rgb), coordinates(rgb)[:, 0, 0]
        contrast = np.maximum(own, self._paper) / np.minimum(own, self._paper)
        low, high = self._lightness
        return rgb[(contrast >= 3.05) & (lightness >= low) & (lightness <= high)]

    def least(self, chosen: np.ndarray) -> np.ndarray:
        """For each colour, its least distance to another one, to ink and to grey."""
        apart = distances(chosen, chosen)
        np.fill_diagonal(apart, np.inf)
        return np.minimum(apart.min(1), distances(chosen, self.fixed).min(1))

    def improve(self, rgb: np.ndarray) -> np.ndarray:
        """Move colours by small steps while the least distance grows."""
        rgb, step = rgb.copy(), 12
        while step:
            least = self.least(coordinates(rgb))
            for i in np.argsort(least)[:5]:
                moves = np.stack(np.meshgrid(*3 * [[-step, 0, step]]), -1).reshape(-1, 3)
                near = self.allowed(np.clip(rgb[i] + moves, 0, 255))
                seen, others = coordinates(near), coordinates(np.delete(rgb, i, 0))
                found = np.minimum(
                    distances(seen, others).min(1), distances(seen, self.fixed).min(1)
                )
                if found.max(initial=0) > least[i] + 1e-4:
                    rgb[i] = near[found.argmax()]
                    break
            else:
                step //= 2
        return rgb


def search(scheme: Scheme, seconds: float) -> np.ndarray:
    """The best colours that were found in that time."""
    grid = np.stack(np.meshgrid(*3 * [np.arange(0.0, 256, 17)]), -1).reshape(-1, 3)
    grid = scheme.allowed(grid)
    seen = coordinates(grid)
    to_fixed = distances(seen, scheme.fixed).min(1)
    apart = np.concatenate([distances(seen[i : i + 50], seen) for i in range(0, len(seen), 50)])
    rng, best, found = np.random.default_rng(0), 0.0, grid[:COUNT]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chosen, tries = rng.choice(len(grid), COUNT, replace=False), 0
        while tries < 3 * COUNT:
            among = apart[np.ix_(chosen, chosen)] + np.diag(np.full(COUNT, np.inf))
            least = np.minimum(among.min(1), to_fixed[chosen])
            i = int(least.argmin()) if tries < 3 else int(rng.integers(COUNT))
            other = np.minimum(apart[np.delete(chosen, i)].min(0), to_fixed)
            better = other.max() > least[i] + 1e-6
            chosen[i], tries = (other.argmax(), 0) if better else (chosen[i], tries + 1)
        if least.min() > 0.9 * best:
            moved = scheme.improve(grid[chosen])
            if (now := scheme.least(coordinates(moved)).min()) > best:
                best, found = now, moved
    return found


def order(scheme: Scheme, rgb: np.ndarray, dashes: int = 4) -> np.ndarray:
    """Put those first that differ most; lines with the same dashes differ more than others."""
    seen = coordinates(rgb)
    apart, to_fixed = distances(seen, seen), distances(seen, scheme.fixed).min(1)

    def spread(first: int) -> tuple[list[int], list[float]]:
        chosen, least = [first], [to_fixed[first]]
        while len(chosen) < len(rgb):
            same = [1.0 if (len(chosen) - k) % dashes == 0 else 1.3 for k in range(len(chosen))]
            value = np.minimum((apart[:, chosen] * same).min(1), to_fixed)
            value[chosen] = -1
            chosen.append(int(value.argmax()))
            least.append(float(value.max()))
        return chosen, least

    best, _ = max(
        map(spread, range(len(rgb))), key=lambda found: np.minimum.accumulate(found[1]).sum()
    )
    return rgb[best]


if __name__ == "__main__":
    scheme = Scheme(sys.argv[1])
    ordered = order(scheme, search(scheme, float(sys.argv[2])))
    print(*("#" + bytes(map(int, color)).hex() for color in ordered))
    print(f"least distance: {scheme.least(coordinates(ordered)).min():.4f}")
