"""Real photographs for tests, cut from those of scikit-image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from skimage import data

NAMES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "rocket")


def crop(number, size=(64, 64)):
    """A piece of a photograph as an RGB image: another one for each number."""
    photo = np.atleast_3d(getattr(data, NAMES[number % len(NAMES)])())
    rng = np.random.default_rng(number)
    width, height = size
    top, left = (int(rng.integers(0, n - k)) for n, k in zip(photo.shape[:2], (height, width), strict=True))
    piece = photo[top : top + height, left : left + width]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(piece, (height, width, 3))))


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder_of_photographs(home):
    """Photographs, one twice, one broken, and something else."""
    (home / "more").mkdir(parents=True)
    (home / "album.png").mkdir()
    for i in range(4):
        crop(i).save(home / f"{i}.png")
    crop(0).save(home / "more" / "again.PNG")
    (home / "broken.jpg").write_bytes(b"?")
    (home / "notes.txt").write_text("no image")
    return home
