"""The task suite: images with a strong clutter dial, questions of known depth, and one warm policy for every arm."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.records import ROOT
from benchmarks.rlvr.encoder import Gallery, build_gallery
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts, ask_about
from benchmarks.rlvr.scenes import draw_scenes
from benchmarks.rlvr.warmup import warm_up
from durian_adv.data.scoring.efficientnet import load_network
from studies.evidence.demonstrations import demonstrate

CACHE, SHIPPED = ROOT / "out" / "evidence", Path(__file__).parent / "records"
SPLITS = {"train": 0, "held_out": 1}


@dataclass(frozen=True)
class Settings:
    """What makes a suite; two suites with the same settings are the same."""

    seed: int = 0
    images: int = 12000
    held_out_images: int = 2000
    clutter: float = 1.0
    fade: float = 0.8  # of a shape's opacity at full clutter
    strokes: int = 60  # at full clutter
    layer: str = "stride16"
    width: int = 64
    warmup_steps: int = 1500
    guess_share: float = 0.2  # of the demonstrations
    careless_share: float = 0.2
    malformed_share: float = 0.15

    @property
    def warm_name(self) -> str:
        """Name the file of the warm policy's weights."""
        return f"warm-{hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]}.pt"

    def count(self, split: str) -> int:
        """Return how many images a split has."""
        return self.images if split == "train" else self.held_out_images

    def images_digest(self, split: str) -> str:
        """Name a split's images, which suites that differ in the policy alone share."""
        names = ("seed", "clutter", "fade", "strokes", "layer")
        parts = [split, self.count(split), *(getattr(self, name) for name in names)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Suite:
    """What every run starts from; nothing of it is changed by a run."""

    settings: Settings
    train: Gallery
    held_out: Gallery
    exam: Prompts
    warm: dict[str, Tensor]  # the warm policy's weights

    def policy(self) -> Policy:
        """Return a fresh copy of the warm policy, to train in place."""
        policy = Policy(self.train.patches.shape[-1], self.settings.width)
        policy.load_state_dict(self.warm)
        return policy

    @property
    def clutter(self) -> Tensor:
        """The true clutter of each training scene."""
        return torch.tensor([scene.clutter for scene in self.train.scenes])

    @property
    def weights_digest(self) -> str:
        """Name the warm weights: records made from other bits cannot be compared."""
        return digest_of(self.warm)


def digest_of(weights: dict[str, Tensor]) -> str:
    """Return a digest of a policy's weights."""
    parts = (weights[name].numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:10]


def draw(settings: Settings, split: str) -> Any:
    """Return the scenes of a split, drawn anew: the same ones for the same settings."""
    return draw_scenes(
        split,
        settings.count(split),
        clutter=settings.clutter,
        rng=np.random.default_rng([settings.seed, SPLITS[split]]),
        fade=settings.fade,
        strokes=settings.strokes,
    )


def load_suite(settings: Settings | None = None, cache: Path = CACHE) -> Suite:
    """Return the suite, from the cache where it is there; making it takes minutes, loading it a second."""
    settings = settings or Settings()
    cache.mkdir(parents=True, exist_ok=True)
    galleries = [_gallery(settings, split, cache / f"{split}-{settings.images_digest(split)}.pt") for split in SPLITS]
    exam = ask_about(galleries[1], np.arange(settings.held_out_images), np.random.default_rng([settings.seed, 2]))
    # Kept with the records: on another machine a warm-up would give other bits, and runs could not be compared.
    path = next((f for f in (SHIPPED, cache) if (f / settings.warm_name).exists()), cache) / settings.warm_name
    if not path.exists():
        save(_warm_up(settings, galleries[0]), path)
    return Suite(settings, *galleries, exam, torch.load(path, weights_only=True))


def save(value: Any, path: Path) -> None:
    """Write with torch so that the file is either whole or not there."""
    scratch = path.with_suffix(f".{os.getpid()}")
    torch.save(value, scratch)
    scratch.replace(path)


def _gallery(settings: Settings, split: str, path: Path) -> Gallery:
    if not path.exists():
        scenes = draw(settings, split)
        gallery = build_gallery(scenes, settings.count(split), load_network(settings.layer), title=f"{split} images")
        # Without the pixels, which nothing trains on, and in half precision, the cache stays small.
        light = [replace(scene, image=np.zeros((0, 0, 3), np.uint8)) for scene in gallery.scenes]
        save(replace(gallery, scenes=light, patches=gallery.patches.half()), path)
    gallery = torch.load(path, weights_only=False)  # our own file
    return replace(gallery, patches=gallery.patches.float())


def _warm_up(settings: Settings, gallery: Gallery) -> dict[str, Tensor]:
    torch.manual_seed(settings.seed)
    policy = Policy(gallery.patches.shape[-1], settings.width)
    warm_up(
        policy,
        gallery,
        steps=settings.warmup_steps,
        guess_share=settings.guess_share,
        rng=np.random.default_rng([settings.seed, 3]),
        demonstrator=partial(
            demonstrate, careless_share=settings.careless_share, malformed_share=settings.malformed_share
        ),
    )
    return {name: weight.clone() for name, weight in policy.state_dict().items()}
