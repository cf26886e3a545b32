"""``durian-adv entropy``: the visual entropy of every row of a data set, computed once and kept beside the images."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENCODER_OPTIONS = ("features", "layer", "size", "device", "dtype", "min_pixels", "max_pixels", "resize_first")


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "entropy",
        help="add a column visual_entropy to a data set",
        description="Read a folder of images, a table (.parquet, .jsonl) or a data set saved by the library datasets; "
        "write the same with a column visual_entropy, in nats, NaN where an image cannot be read or where there is "
        "none; of a folder, a table. An output named .json is one object from image path to entropy. Where there "
        "is a column extra_info, as verl has it, the entropy is put there too. "
        "A run that was killed goes on where it was, when it is started again.",
    )
    command.set_defaults(run=run)
    command.add_argument("input", type=Path, help="a folder of images, a table or a data set on disk")
    command.add_argument("output", type=Path, help="the table or data set to write; must not be there yet")
    command.add_argument(
        "--encoder",
        metavar="NAME",
        help="efficientnet-lite0 (the default; its weights are in a package), or the name or folder of a model of "
        "transformers: of a vision-language model the tower, or a vision model",
    )
    command.add_argument("--features", choices=("patches", "projected"), help="of a vision-language model")
    command.add_argument("--layer", choices=("stride8", "stride16", "stride32", "head"), help="of EfficientNet")
    command.add_argument("--size", type=int, metavar="PIXELS", help="that EfficientNet's images are resized to")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of a model of transformers")
    for limit, what in (("min", "fewer are enlarged"), ("max", "more are made smaller")):
        command.add_argument(
            f"--{limit}-pixels",
            type=int,
            metavar="PIXELS",
            help=f"images of {what}, by processors with limits (Qwen's)",
        )
    command.add_argument(
        "--resize-first",
        type=int,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="bring every image between so many pixels before anything else, as EasyR1 does",
    )
    command.add_argument("--batch-size", type=int, default=8, metavar="IMAGES", help="encoded together (default: 8)")
    command.add_argument("--images", metavar="COLUMN", help="of images (default: images, or else image)")
    command.add_argument("--image-root", type=Path, metavar="FOLDER", help="of relative paths (default: the table's)")
    command.add_argument("--extra-info", action="store_true", help="make a column extra_info where there is none")
    command.add_argument("--cache", type=Path, metavar="FILE", help="that keeps entropies, also for other data sets")


def run(options: argparse.Namespace) -> None:
    """Compute what is not known yet, then write the output at once."""
    try:
        _run(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: expected what pip install 'durian-adv[entropy]' brings") from None


def _run(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from durian_adv.data.scoring.cache import Cache
    from durian_adv.data.scoring.data import for_output, open_source
    from durian_adv.data.scoring.encoders import EFFICIENTNET, load_encoder
    from durian_adv.data.scoring.images import images_of
    from durian_adv.data.scoring.rows import row_entropies

    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1 image, got {options.batch_size}")
    source = for_output(open_source(options.input, options.images, options.image_root), options.output)
    given = {name: getattr(options, name) for name in _ENCODER_OPTIONS if getattr(options, name) is not None}
    encoder = load_encoder(options.encoder or EFFICIENTNET, **given)
    mine = options.output.with_name(options.output.name + ".cache")
    cache = Cache(options.cache or mine, encoder.name)
    before, unread = len(cache), []
    bar = tqdm(total=len(source), unit="row", smoothing=0.05)

    def unreadable(row: int, place: int, why: str) -> None:
        unread.append(row)
        bar.write(f"durian-adv entropy: row {row}, image {place}: cannot be read: {why}", file=sys.stderr)

    images = 0

    def cells() -> Iterator[Any]:
        nonlocal images
        for cell in source.cells():
            images += len(images_of(cell))
            yield cell

    entropies = array("d", [0.0]) * len(source)
    with bar:
        for row, entropy in row_entropies(
            cells(),
            encoder,
            cache,
            batch_size=options.batch_size,
            root=source.root,
            unreadable=unreadable,
        ):
            entropies[row] = entropy
            bar.update()
    computed = len(cache) - before
    cache.close()
    if images and len(unread) == images:
        if options.cache is None:
            mine.unlink()
        raise ValueError(
            f"{options.input}: expected images that can be read, got none among {images}; nothing is written"
        )

    partial = options.output.with_name(f"{options.output.stem}.partial{options.output.suffix}")
    if partial.is_dir():
        shutil.rmtree(partial)  # of a run that was killed
    source.write(entropies, partial, options.extra_info)
    os.replace(partial, options.output)
    if options.cache is None:
        mine.unlink()
    print(
        f"durian-adv entropy: {len(source)} rows, {computed} images computed ({encoder.name}), {before} known before, "
        f"{len(unread)} not readable in {len(set(unread))} rows",
        file=sys.stderr,
    )
