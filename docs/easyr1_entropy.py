"""Add a column visual_entropy to a dataset for EasyR1: the entropy of each prompt's images, as its actor will see them.

    python easyr1_entropy.py --data hiyouga/geometry3k@train --out geometry3k_entropy/train.parquet

The tower is that of the model before training. With several images it is their mean; without any it is null.
"""

import argparse
import os
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.utils.dataset import process_image

from durian_adv.adapters import features

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="as EasyR1's data.train_files: a file or a name on the hub, @split")
parser.add_argument("--out", required=True, type=Path, help="a parquet file")
parser.add_argument("--model", default="Qwen/Qwen2.5-VL-7B-Instruct")
parser.add_argument("--image-key", default="images")
parser.add_argument("--image-dir", default="", help="where images lie that are given by name")
parser.add_argument("--min-pixels", type=int, default=262144, help="data.min_pixels of the training")
parser.add_argument("--max-pixels", type=int, default=4194304, help="data.max_pixels of the training")
parser.add_argument("--features", choices=features.FEATURES, default="patches")
parser.add_argument("--trust-remote-code", action="store_true")
options = parser.parse_args()

name, _, split = options.data.partition("@")
kind = Path(name).suffix[1:].replace("jsonl", "json")
data = load_dataset(kind, data_files=name, split="train") if Path(name).is_file() else load_dataset(name, split=split)

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, torch_dtype="auto").to(device).eval()
processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=options.trust_remote_code).image_processor
vision = features.find_vision(model)
if vision is None:
    raise SystemExit(f"no vision tower found in {type(model).__name__}")


@torch.no_grad()
def entropy(example: dict) -> dict:
    """Return the new column of one example."""
    given = [os.path.join(options.image_dir, i) if isinstance(i, str) else i for i in example[options.image_key]]
    if not given:
        return {"visual_entropy": None}
    images = [process_image(image, options.min_pixels, options.max_pixels) for image in given]
    inputs = processor(images=images, return_tensors="pt").to(device)
    with features.caught_entropies(vision, options.features, [True] * len(images)) as caught:
        model.get_image_features(**inputs)
    return {"visual_entropy": features.mean_by_sample(caught, [len(images)])[0]}


data = data.map(entropy, desc="visual entropy")
options.out.parent.mkdir(parents=True, exist_ok=True)
data.to_parquet(options.out)
values = torch.tensor([value for value in data["visual_entropy"] if value is not None])
print(
    f"{options.out}: {len(data)} prompts, {len(values)} with images, entropies {values.min():.3f} to {values.max():.3f}"
)
