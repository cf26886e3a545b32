"""``durian-adv entropy``: the visual entropy of every row of a data set, computed once and kept beside the images."""

from __future__ import annotations

import argparse
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from durian_adv._src.errors import ArgumentError
from durian_adv.cli.terminal import bar, tell, visible

_ENCODER_OPTIONS = ("features", "layer", "size", "device", "dtype", "min_pixels", "max_pixels", "resize_first")
_TOLD = 10  # rows with other inputs that are named one by one


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "entropy",
        help="column visual_entropy for a data set",
        description="Read a folder of images, a table (.parquet, .jsonl, .json, .csv), a folder of parquet files or a "
        "data set saved by the library datasets; write the same with a column visual_entropy, in nats, NaN where an "
        "image cannot be read or where there is none; of a folder of images, a table. An output named .json is one "
        "object from image path to entropy, or of a JSON array the same array. Where there is a column extra_info, as "
        "verl has it, the entropy is put there too. A run that was interrupted goes on where it was, when it is "
        "started again.",
    )
    command.set_defaults(run=run)
    command.add_argument("input", type=Path, help="folder of images, table, folder of parquet files, data set on disk")
    command.add_argument("output", type=Path, help="table or data set to write; must not exist")
    _add_encoder(command)
    command.add_argument(
        "--images", metavar="COLUMN", help="column of images (default: images, or else image, or else messages)"
    )
    command.add_argument(
        "--image-root", type=Path, metavar="FOLDER", help="start of relative paths (default: the table's folder)"
    )
    command.add_argument(
        "--other-inputs",
        choices=("warn", "error", "allow"),
        default="warn",
        help="treatment of rows with a video or a sound, whose entropy is NaN (default: warn)",
    )
    command.add_argument(
        "--by-image", action="store_true", help="one object from image path to entropy as output, also of JSON arrays"
    )
    command.add_argument(
        "--extra-info", action="store_true", help="column extra_info also where there is none (default: no)"
    )
    command.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="file that keeps entropies, also for other data sets (default: one beside the output until it is written)",
    )


def _add_encoder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--encoder",
        metavar="NAME",
        help="efficientnet-lite0, whose weights are in a package, or the name or folder of a model of transformers, "
        "downloaded if it is no folder: of a vision-language model the tower, or a vision model "
        "(default: efficientnet-lite0)",
    )
    command.add_argument(
        "--features", choices=("patches", "projected"), help="features of a vision-language model (default: patches)"
    )
    command.add_argument(
        "--layer",
        choices=("stride8", "stride16", "stride32", "head"),
        help="layer of EfficientNet (default: head)",
    )
    command.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of EfficientNet's square images, in pixels (default: 448)"
    )
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of a model of transformers (default: float32)",
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="IMAGES", help="images encoded together (default: 8)"
    )
    _add_pixels(command)


def _add_pixels(command: argparse.ArgumentParser) -> None:
    for limit, what in (("min", "fewer are enlarged"), ("max", "more are made smaller")):
        command.add_argument(
            f"--{limit}-pixels",
            type=int,
            metavar="PIXELS",
            help=f"images of {what}, by processors with limits, such as Qwen's (default: the processor's own)",
        )
    command.add_argument(
        "--resize-first",
        type=int,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="pixels between which every image is brought before anything else, as EasyR1 does (default: not done)",
    )


def run(options: argparse.Namespace) -> None:
    """Compute what is not known yet, then write the output at once."""
    try:
        _run(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: expected what pip install 'durian-adv[entropy]' brings") from None


class _Losses:
    """Rows without an entropy that would have one: said one by one, and counted."""

    def __init__(self, other_inputs: str) -> None:
        self._other_inputs = other_inputs
        self.images, self.unread = 0, Counter[int]()
        self.unscored: Counter[str] = Counter()
        self.rows_unscored = 0
        self.beside: Counter[str] = Counter()

    def unreadable(self, where: str, row: int, place: int, why: str) -> None:
        """Count and name an image."""
        self.unread[row] += 1
        _note(f"{where}, image {place + 1}: cannot be read: {why}".replace("\n", "\\n"))

    def unscoreable(self, where: str, what: list[str]) -> None:
        """Count a row with another input, and name it or refuse it."""
        self.rows_unscored += 1
        self.unscored.update(set(what))
        if self._other_inputs == "allow":
            return
        told = f"{where}: {' and '.join(dict.fromkeys(what))}, which has no visual entropy"
        if self._other_inputs == "error":
            raise ValueError(f"{told} (--other-inputs error)")
        if self.rows_unscored <= _TOLD:
            more = "; further ones are counted only" if self.rows_unscored == _TOLD else ""
            _note(f"{told}: the row's is NaN{more}")

    def nothing_scored(self) -> bool:
        """Return whether there was something to score, and all of it was lost."""
        unread = self.unread.total()
        return unread == self.images and (unread > 0 or (self.rows_unscored > 0 and self._other_inputs != "allow"))

    def summary(self) -> str:
        """Return the counts."""
        told = f"{self.unread.total()} not readable in {len(self.unread)} rows"
        if self.rows_unscored:
            kinds = ", ".join(f"{kind} {times:,}" for kind, times in self.unscored.most_common())
            told += f", {self.rows_unscored} rows without entropy for their other inputs ({kinds})"
        for what, rows in self.beside.items():
            told += f", {rows:,} rows with images and {what}, which is not in their entropy"
        return told


def _note(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"durian-adv entropy: {visible(text)}", file=sys.stderr)


def _run(options: argparse.Namespace) -> None:
    from durian_adv.data import aside
    from durian_adv.data.scoring.cache import Cache
    from durian_adv.data.scoring.data import for_output, open_source
    from durian_adv.data.scoring.encoders import EFFICIENTNET, load_encoder

    if options.batch_size < 1:
        raise ArgumentError("--batch-size", "at least 1 image", options.batch_size)
    losses = _Losses(options.other_inputs)
    source = open_source(options.input, options.images, options.image_root)
    source = for_output(source, options.output, options.by_image, losses.unscoreable)
    given = {name: getattr(options, name) for name in _ENCODER_OPTIONS if getattr(options, name) is not None}
    encoder = load_encoder(options.encoder or EFFICIENTNET, **given)
    mine = options.output.with_name(options.output.name + ".cache")
    cache = Cache(options.cache or mine, encoder.name)
    try:
        before = len(cache)
        entropies = _entropies(source, encoder, cache, losses, options.batch_size)
        computed = len(cache) - before
    finally:
        cache.close()
    if losses.nothing_scored():
        if options.cache is None:
            mine.unlink()
        raise ValueError(
            f"{options.input}: expected images that can be read, got none: {losses.summary()}; nothing is written"
        )
    with aside.written([options.output]) as (partial,), aside.naming(options.output):
        source.write(entropies, partial, options.extra_info)
    if options.cache is None:
        mine.unlink()
    told = f"{len(source)} rows, {computed} images computed ({encoder.name}), {before} known before"
    tell("entropy", f"{told}, {losses.summary()}")


def _entropies(source: Any, encoder: Any, cache: Any, losses: _Losses, batch_size: int) -> array[float]:
    """Return the entropy of each row."""
    from durian_adv.data.scoring.rows import row_entropies

    def counted() -> Any:
        for media in source.rows():
            losses.images += 0 if media.other else len(media.pictures)
            losses.beside.update(media.beside)
            yield media

    found = row_entropies(
        counted(),
        encoder,
        cache,
        batch_size=batch_size,
        root=source.root,
        unreadable=lambda row, place, why: losses.unreadable(source.where(row), row, place, why),
        unscored=lambda row, what: losses.unscoreable(source.where(row), what),
    )
    entropies = array("d", [0.0]) * len(source)
    with bar(total=len(source), unit="row", smoothing=0.05) as progress:
        for row, entropy in found:
            entropies[row] = entropy
            progress.update()
    return entropies
