"""A real encoder that takes milliseconds, and the entropies that it must give."""

from __future__ import annotations

import functools

import numpy as np
from einops import rearrange
from PIL import Image

from durian_adv import eigen_entropy
from durian_adv.data.scoring import load_encoder
from durian_adv.data.scoring.efficientnet import encode_images, load_network
from durian_adv.data.scoring.media import pictures_of
from durian_adv.data.scoring.rows import row_entropies

SMALL = {"layer": "stride8", "size": 64}
FLAGS = ["--layer", "stride8", "--size", "64"]

_network = functools.cache(load_network)


def entropy(image):
    """What the entropy of an image is, straight from its formula."""
    square = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    features = encode_images(_network("stride8"), [np.asarray(square)])
    return eigen_entropy(rearrange(features, "1 d h w -> (h w) d")).item()


class Counting:
    """An encoder that keeps count of what it is asked for."""

    def __init__(self, grouped=False):
        self.inner, self.grouped, self.batches = load_encoder(**SMALL), grouped, []
        self.name = self.inner.name

    def prepare(self, image):
        return (image.size if self.grouped else None), self.inner.prepare(image)[1]

    def entropies(self, prepared):
        self.batches.append(len(prepared))
        return self.inner.entropies(prepared)


@functools.cache
def shared_encoder():
    """One for all tests that do not look at its count."""
    return Counting()


def score(cells, encoder, known=None, **options):
    """Entropies of rows in the order of rows, and what could not be read."""
    told = []

    def tell(*what):
        told.append(what)

    found = dict(
        row_entropies(
            map(pictures_of, cells),
            encoder,
            {} if known is None else known,
            **{"batch_size": 4, "root": None, "unreadable": tell, "unscored": tell, **options},
        )
    )
    assert sorted(found) == list(range(len(cells)))
    return [found[row] for row in range(len(cells))], told
