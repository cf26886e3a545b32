"""Labeled scenes: colored shapes on a grid of 4 x 4 cells, drawn on a photograph."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import skimage.data
from einops import repeat
from skimage.draw import line_aa
from skimage.transform import resize

KINDS = ("circle", "square", "triangle", "cross")
COLORS = {"red": (214, 40, 40), "green": (46, 160, 67), "blue": (45, 95, 220), "yellow": (244, 200, 40)}
GRID = 4
CELL = 32
SIZE = GRID * CELL

# Photographs that scikit-image ships in its wheel, so nothing is downloaded; no photograph is in both splits.
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "brick",
        "camera",
        "cell",
        "chelsea",
        "clock",
        "grass",
        "hubble_deep_field",
        "moon",
        "page",
        "retina",
        "stereo_motorcycle",
        "text",
    ),
    "held_out": ("coffee", "coins", "gravel", "immunohistochemistry", "rocket"),
}


@dataclass(frozen=True)
class Scene:
    """An image and what is in it; cells run row by row, and an empty cell holds the empty string twice."""

    image: np.ndarray  # (SIZE, SIZE, 3) uint8
    kinds: tuple[str, ...]
    colors: tuple[str, ...]
    clutter: float
    photograph: str


def load_photograph(name: str) -> np.ndarray:
    """Return a photograph as (height, width, 3) floats in [0, 255], its short side twice a scene's."""
    photograph = getattr(skimage.data, name)()
    if isinstance(photograph, tuple):  # a stereo pair: its left eye
        photograph = photograph[0]
    if photograph.ndim == 2:
        photograph = repeat(photograph, "h w -> h w c", c=3)
    height, width = (max(2 * SIZE, round(2 * SIZE * n / min(photograph.shape[:2]))) for n in photograph.shape[:2])
    return resize(photograph, (height, width, 3), anti_aliasing=True, preserve_range=True).astype(np.float32)


def draw_scenes(
    split: str, count: int, *, clutter: float, rng: np.random.Generator, fade: float = 0.2, strokes: int = 40
) -> Iterator[Scene]:
    """Yield scenes on the photographs of one split; each scene's clutter is uniform between 0 and the dial."""
    photographs = {name: load_photograph(name) for name in PHOTOGRAPHS[split]}
    for _ in range(count):
        name = str(rng.choice(PHOTOGRAPHS[split]))
        yield draw_scene(photographs[name], name, clutter=clutter * rng.random(), rng=rng, fade=fade, strokes=strokes)


def draw_scene(
    photograph: np.ndarray,
    name: str,
    *,
    clutter: float,
    rng: np.random.Generator,
    fade: float = 0.2,
    strokes: int = 40,
) -> Scene:
    """Draw 3 to 9 shapes on a random crop; clutter brings out the photograph, fades shapes and adds strokes."""
    image = _background(photograph, clutter, rng)
    cells = rng.permutation(GRID * GRID)[: rng.integers(3, 10)]
    kinds, colors = [""] * GRID * GRID, [""] * GRID * GRID
    for cell in cells:
        kinds[cell], colors[cell] = str(rng.choice(KINDS)), str(rng.choice(list(COLORS)))
        row, column = divmod(int(cell), GRID)
        tile = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        _paint(tile, kinds[cell], COLORS[colors[cell]], 1.0 - fade * min(clutter, 1.0), rng)
    for _ in range(round(strokes * clutter)):
        _stroke(image, rng)
    return Scene(image.round().astype(np.uint8), tuple(kinds), tuple(colors), clutter, name)


def _background(photograph: np.ndarray, clutter: float, rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(n - SIZE + 1)) for n in photograph.shape[:2])
    crop = photograph[top : top + SIZE, left : left + SIZE]
    mean = crop.mean(axis=(0, 1))
    return mean + (0.3 + 0.7 * min(clutter, 1.0)) * (crop - mean)


def _paint(tile: np.ndarray, kind: str, color: tuple[int, int, int], strength: float, rng: np.random.Generator) -> None:
    """Blend one jittered, tilted shape into a cell, in place."""
    radius, tilt = rng.uniform(8.0, 12.0), rng.uniform(-0.25, 0.25)
    center = (CELL - 1) / 2 + rng.uniform(-3.0, 3.0, size=2)
    y, x = np.mgrid[:CELL, :CELL] - center[:, None, None]
    x, y = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
    opacity = strength * np.clip(0.5 - _distance_outside(kind, x, y, radius), 0.0, 1.0)[..., None]
    shade = np.array(color) * rng.uniform(0.75, 1.0)
    tile += opacity * (shade - tile)


def _distance_outside(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return each pixel's distance to the shape's edge (negative inside), whose areas are about equal."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(abs(x), abs(y)) - 0.88 * radius
    if kind == "triangle":
        return np.maximum(y, np.sqrt(0.75) * abs(x) - 0.5 * y) - 0.65 * radius
    return np.maximum(np.minimum(abs(x), abs(y)) - 0.38 * radius, np.maximum(abs(x), abs(y)) - 1.1 * radius)


def _stroke(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one thin line of a random color across a few cells, in place."""
    start = rng.integers(SIZE, size=2)
    end = np.clip(start + rng.integers(-CELL, CELL + 1, size=2), 0, SIZE - 1)
    rows, columns, opacity = line_aa(*start, *end)
    image[rows, columns] += opacity[:, None] * (rng.uniform(0, 255, size=3) - image[rows, columns])
