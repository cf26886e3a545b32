"""Entropy of images from a vision-language model's own features, taken while they pass from its vision tower.

Every model of this kind has a *connector* between the vision tower and the language model. What goes into it are the
tower's patch features, what comes out are the tokens that the language model sees. A hook on it sees both, in every
forward that somebody runs anyway, and keeps one number per image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from durian_adv import eigen_entropy

FEATURES = ("patches", "projected")
# Connectors by their names in transformers: "merger" is a part of its tower (Qwen-VL), the others stand beside it
_CONNECTORS = ("merger", "connector", "multi_modal_projector")
_TOWERS = ("vision_model", "vision_tower")
# What tells a tower how its images lie in pixel_values, by the names under which models take it and TRL keeps it
_BY_IMAGE = ("image_grid_thw", "image_sizes", "image_position_ids")
_BY_ROW = ("pixel_attention_mask", "spatial_shapes")


class Vision(NamedTuple):
    """The part of a model that turns images into tokens of the language model."""

    tower: nn.Module
    connector: nn.Module


def find_vision(model: nn.Module) -> Vision | None:
    """Return the vision tower and the connector of a model, or None if it has none under a known name."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if last == "merger":
            return Vision(modules[parent], module)
        if last in _CONNECTORS:
            for tower in _TOWERS:
                if (beside := modules.get(f"{parent}.{tower}" if parent else tower)) is not None:
                    return Vision(beside, module)
    return None


@contextmanager
def caught_entropies(vision: Vision, features: str, wanted: Sequence[bool]) -> Iterator[list[float]]:
    """Yield a list that gets one entropy for each image, in the order in which images pass the connector.

    ``wanted`` has one flag for each image expected: others get NaN without being computed. Once as many have passed,
    further forwards add nothing; one that goes beyond adds all of its images, so that the length tells.
    """
    entropies: list[float] = []
    layout: dict[str, Any] = {"grid": None, "mask": None}

    def of_tower(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Qwen's towers take (hidden_states, grid_thw), by position or by name
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        layout.update(grid=grid, mask=kwargs.get("patch_attention_mask"))

    def of_connector(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if len(entropies) >= len(wanted):
            return
        images = _images(output if features == "projected" else args[0], features, **layout)
        flags = [*wanted, *[True] * len(images)][len(entropies) :]
        entropies.extend(
            eigen_entropy(image).item() if flag else math.nan for image, flag in zip(images, flags, strict=False)
        )

    handles = (
        vision.tower.register_forward_pre_hook(of_tower, with_kwargs=True),
        vision.connector.register_forward_hook(of_connector),
    )
    try:
        yield entropies
    finally:
        for handle in handles:
            handle.remove()


def _images(values: Tensor, features: str, grid: Tensor | None, mask: Tensor | None) -> Sequence[Tensor]:
    """Split what a connector takes or gives into one ``(P, D)`` an image."""
    if values.ndim == 3:
        if mask is None or features == "projected":
            return values.unbind()
        real = mask.flatten(1)
        return [image[there] for image, there in zip(values, real, strict=True)]
    if values.ndim != 2 or grid is None:
        raise ValueError(
            f"{features}: expected features (images, P, D), or (patches, D) with the grid of each image; "
            f"got {tuple(values.shape)} and {'no' if grid is None else 'a'} grid. Put a column visual_entropy into the "
            "dataset instead"
        )
    patches = grid.prod(-1)
    merged = int(patches.sum()) // max(1, len(values))  # patches that became one token
    return torch.split(values, (patches // merged).tolist())


def rows_by_sample(batch: Mapping[str, Any]) -> list[int]:
    """Return how many images (or tiles, which count as images) of the connector each sample of a TRL batch has."""
    if batch.get("num_tiles") is not None:
        return list(batch["num_tiles"])
    pixels = batch["pixel_values"]
    if pixels.ndim == 5:  # (samples, tiles, C, H, W); models leave out the tiles that are all zero, which are padding
        return (pixels != 0).flatten(2).any(2).sum(1).tolist()  # type: ignore[no-any-return]  # pixels are Any
    return list(batch["num_images"])


def tower_entropies(model: Any, vision: Vision, features: str, batch: Mapping[str, Any], samples: list[int]) -> Any:
    """Run the vision tower once on the images of some samples of a TRL batch; return a list of entropies per sample."""
    rows, pixels = rows_by_sample(batch), batch["pixel_values"]
    images = batch["num_images"]
    if batch.get("image_grid_thw") is not None:
        sizes = [int(grid.prod(-1).sum()) for grid in torch.split(batch["image_grid_thw"], images)]
    else:
        sizes = [1] * len(pixels) if pixels.ndim == 5 else rows
    tile_sizes = [1] * len(images) if pixels.ndim == 5 else rows
    inputs = {"pixel_values": _chosen(pixels, sizes, samples)}
    for names, counts in ((_BY_IMAGE, images), (_BY_ROW, tile_sizes)):
        for name in names:
            if batch.get(name) is not None:
                inputs[name] = _chosen(batch[name], counts, samples)
    counts = [rows[i] for i in samples]
    with torch.no_grad(), caught_entropies(vision, features, [True] * sum(counts)) as entropies:
        if sum(counts):
            model.get_image_features(**inputs)
    return mean_by_sample(entropies, counts)


def _chosen(values: Tensor, counts: Sequence[int], samples: Sequence[int]) -> Tensor:
    """Pick the rows of some samples, of which each has ``counts`` of them."""
    of_sample = torch.split(values, list(counts))
    return torch.cat([of_sample[i] for i in samples])


def mean_by_sample(entropies: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Return the mean entropy of each sample's images: NaN for a sample without one."""
    if len(entropies) != sum(counts):
        raise ValueError(
            f"visual entropy: expected {sum(counts)} images of {len(counts)} samples, got {len(entropies)} from the "
            "vision tower. Put a column visual_entropy into the dataset instead"
        )
    values = iter(entropies)
    return [sum(next(values) for _ in range(n)) / n if n else math.nan for n in counts]
