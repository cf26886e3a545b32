"""Patch features of scenes from the frozen vision encoder."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.rlvr.scenes import COLORS, GRID, KINDS, Scene
from durian_adv import eigen_entropy
from durian_adv.data.scoring.efficientnet import encode_images


@dataclass(frozen=True)
class Gallery:
    """Scenes as the policy and the advantage see them, one row per scene."""

    scenes: list[Scene]
    patches: Tensor  # (scenes, 16, features): one token a cell
    visual_entropy: Tensor  # (scenes,) in nats
    kinds: Tensor  # (scenes, 16): 0 is an empty cell
    colors: Tensor  # (scenes, 16)


def build_gallery(scenes: Iterable[Scene], count: int, encoder: nn.Module, *, title: str) -> Gallery:
    """Draw, encode and measure `count` scenes, four at a time (larger batches are slower on a CPU)."""
    drawn, patches, entropies = [], [], []
    for scene in tqdm(scenes, total=count, desc=title, unit="image", mininterval=0.5):
        drawn.append(scene)
        if len(drawn) % 4 == 0 or len(drawn) == count:
            batch = drawn[4 * len(patches) :]
            features = encode_images(encoder, [scene.image for scene in batch])
            entropies.append(eigen_entropy(rearrange(features, "b d h w -> b (h w) d")))
            patches.append(_one_token_a_cell(features))
    kinds = [[["", *KINDS].index(kind) for kind in scene.kinds] for scene in drawn]
    colors = [[["", *COLORS].index(color) for color in scene.colors] for scene in drawn]
    return Gallery(
        drawn,
        # Cloned outside inference mode, so that autograd may save them.
        torch.cat(patches).clone(),
        torch.cat(entropies).clone(),
        torch.tensor(kinds),
        torch.tensor(colors),
    )


def _one_token_a_cell(features: Tensor) -> Tensor:
    """Stack the patches of each cell along the features: space to depth."""
    return rearrange(features, "b d (i h) (j w) -> b (i j) (h w d)", i=GRID, j=GRID)
