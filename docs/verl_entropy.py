"""Add the visual entropy of their images to problems in verl's form: ``verl_entropy.py MODEL IN.parquet OUT.parquet``.

The entropy of an image is that of its patches in the vision tower of ``MODEL``, before they are merged. It is written
twice, as the column ``visual_entropy`` and into ``extra_info``: the first for verl's v1 trainers, the second for all.
A problem with several images has their mean, one without an image has none. Needs ``transformers``, ``pandas``,
``pillow`` and ``tqdm``; takes a GPU if there is one.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from durian_adv.adapters import features


def opened(image: Any) -> Image.Image:
    """Open an image as verl's data holds it: a path, or a dict with bytes or a path."""
    if isinstance(image, Mapping):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]
    return Image.open(image).convert("RGB")


def entropies(model: str, images_of: Sequence[Sequence[Any] | None], kind: str = "patches") -> list[float | None]:
    """Return the mean entropy of each problem's images; None for a problem without an image."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(device).eval()
    processor = AutoProcessor.from_pretrained(model).image_processor
    vision = features.find_vision(network)
    if vision is None:
        raise ValueError(f"{model}: no vision tower found in {type(network).__name__}")
    found: list[float | None] = []
    for images in tqdm(images_of, unit="problem"):
        if images is None or len(images) == 0:
            found.append(None)
            continue
        pixels = processor(images=[opened(image) for image in images], return_tensors="pt").to(device)
        with torch.no_grad(), features.caught_entropies(vision, kind, [True] * len(images)) as caught:
            network.get_image_features(**pixels)
        found += features.mean_by_sample(caught, [len(caught)])
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Read, add, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--image-key", default="images", help="the column of images, verl's data.image_key")
    parser.add_argument("--features", default="patches", choices=features.FEATURES)
    given = parser.parse_args(words)
    data = pd.read_parquet(given.source)
    found = entropies(given.model, list(data[given.image_key]), given.features)
    data["visual_entropy"] = pd.Series(found, index=data.index, dtype="float64")
    extra = data["extra_info"] if "extra_info" in data else [None] * len(data)
    data["extra_info"] = [{**(info or {}), "visual_entropy": value} for info, value in zip(extra, found, strict=True)]
    data.to_parquet(given.target)
    print(pd.Series(found, dtype="float64").describe().to_string())


if __name__ == "__main__":
    main()
