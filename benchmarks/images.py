"""Images for benchmarks: features of natural spectrum, and what a pretrained encoder makes of photographs."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from skimage import data
from torch import Tensor
from tqdm import tqdm

from durian_adv.data.scoring.efficientnet import encode_images, load_network

PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "colorwheel", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket"),
)


def natural_images(count: int, patches: int, dim: int, seed: int = 0) -> Tensor:
    """Draw float32 features whose covariance has eigenvalues k^-a, a between 0.8 and 1.6."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(patches - 1, dim)
    left = torch.randn(patches, rank, generator=generator)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q
    exponents = 0.8 + 0.8 * torch.rand(count, 1, generator=generator)
    roots = torch.arange(1, rank + 1.0) ** (-exponents / 2)
    images = torch.empty(count, patches, dim)
    for x, root in zip(images, tqdm(roots, desc="natural spectra", leave=False), strict=True):
        # one pair of rotations serves all images, shuffled for each
        rows, columns = (torch.randperm(n, generator=generator) for n in (patches, rank))
        torch.mm(left[rows] * root, right[:, columns].T, out=x)
    return images


def photographs(count: int, pixels: int = 1024, seed: int = 0) -> Tensor:
    """Encode square crops of photographs, enlarged to so many pixels: ``(count, (pixels / 32)^2, 1280)``."""
    rng, encoder, features = np.random.default_rng(seed), load_network("head"), []
    for i in tqdm(range(count), desc="photographs", leave=False):
        photo = np.atleast_3d(getattr(data, PHOTOGRAPHS[i % len(PHOTOGRAPHS)])())[..., :3]
        side = int(min(photo.shape[:2]) * rng.uniform(0.4, 1.0))
        top, left = (rng.integers(0, size - side + 1) for size in photo.shape[:2])
        crop = torch.tensor(np.broadcast_to(photo, (*photo.shape[:2], 3))[top : top + side, left : left + side])
        crop = rearrange(crop, "h w c -> 1 c h w").float()
        crop = F.interpolate(crop, (pixels, pixels), mode="bilinear", antialias=True)
        image = rearrange(crop, "1 c h w -> h w c").numpy()
        features.append(rearrange(encode_images(encoder, [image]), "1 d h w -> (h w) d").clone())
    return torch.stack(features)
