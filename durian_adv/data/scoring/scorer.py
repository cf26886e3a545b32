"""A callable that adds visual entropies to batches of a data set, for ``datasets.map`` and ``ray.data.map_batches``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.data import tables
from durian_adv.data.scoring.cache import Cache
from durian_adv.data.scoring.encoders import EFFICIENTNET, Encoder, load_encoder
from durian_adv.data.scoring.extra_info import COLUMN
from durian_adv.data.scoring.media import Media, column_of_images, media_of
from durian_adv.data.scoring.rows import row_entropies

_log = logging.getLogger(__name__)


class EntropyScorer:
    """Add a column ``visual_entropy`` to a batch of rows: in nats, NaN for a row without a readable image.

    ``dataset.map(scorer, batched=True)`` of datasets and ``dataset.map_batches(scorer, batch_format="pyarrow")`` of Ray
    take it as it is; an Arrow table keeps the types of its other columns, lists and structs too. For actors that load
    the encoder once each, give Ray the class::

        dataset.map_batches(
            EntropyScorer, fn_constructor_kwargs={"encoder": name}, batch_format="pyarrow", concurrency=4, num_gpus=1
        )

    The encoder is loaded by the first batch of each process. An image that occurs again is not computed again. Images
    that cannot be read are logged.

    Args:
        encoder: an encoder, or the name of one for ``load_encoder``, with ``features``, ``layer``, ``size``,
            ``device``, ``dtype``, ``min_pixels``, ``max_pixels`` and ``resize_first``.
        images: the column of images, each a single one or a list; by default ``images`` or else ``image``.
        batch_size: images that are encoded together.
        root: where relative paths start.
        cache: a file that keeps entropies, which processes of one machine may share.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name; no column of images.
    """

    def __init__(
        self,
        encoder: str | Encoder = EFFICIENTNET,
        *,
        images: str | None = None,
        batch_size: int = 8,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        features: str = "patches",
        layer: str = "head",
        size: int = 448,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        resize_first: Sequence[int] | None = None,
    ) -> None:
        if checks.integer("batch_size", batch_size, "a number of images") < 1:
            raise ArgumentError("batch_size", "at least 1 image", batch_size)
        self.images = images
        self.batch_size = batch_size
        self.root = None if root is None else Path(root)
        self.cache = None if cache is None else Path(cache)
        self._source = encoder
        self._options = {
            "features": features,
            "layer": layer,
            "size": size,
            "device": device,
            "dtype": dtype,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "resize_first": resize_first,
        }
        self._loaded: tuple[Encoder, MutableMapping[bytes, float]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # each process loads its own; and datasets hashes what it maps with

    def load(self) -> tuple[Encoder, MutableMapping[bytes, float]]:
        """Return the encoder and the entropies known, after loading them where that has not been done."""
        if self._loaded is None:
            encoder = load_encoder(self._source, **self._options) if isinstance(self._source, str) else self._source  # type: ignore[arg-type]
            known: MutableMapping[bytes, float] = {} if self.cache is None else Cache(self.cache, encoder.name)
            self._loaded = encoder, known
        return self._loaded

    def __call__(self, batch: Mapping[str, Any] | pa.Table) -> Any:
        """Return the column of a batch of datasets; of an Arrow table or a plain dict, as Ray has them, all columns."""
        if isinstance(batch, pa.Table):
            kept = batch.drop_columns([COLUMN]) if COLUMN in batch.column_names else batch
            tables.check_unique(kept.column_names, "batch")
            images = column_of_images(kept.column_names, self.images)
            return kept.append_column(COLUMN, pa.array(self._entropies(kept.to_pydict(), images)))
        if not isinstance(batch, Mapping):
            expected, got = "an Arrow table or a mapping of columns", type(batch).__name__
            raise ArgumentTypeError("batch", expected, f"{got} (batch_format='pyarrow')")
        images = column_of_images(list(batch), self.images)
        values = self._entropies(_cells(batch, images), images)
        # datasets adds what is returned to what it has, and would decode and encode every image that comes back
        return {**(batch if isinstance(batch, dict) else {}), COLUMN: values}

    def _entropies(self, columns: Mapping[str, Any], images: str | None) -> np.ndarray[Any, Any]:
        encoder, known = self.load()
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        media: list[Media] = [media_of(row, images) for row in rows]
        values = np.full(len(rows), math.nan)
        for row, entropy in row_entropies(
            media,
            encoder,
            known,
            batch_size=self.batch_size,
            root=self.root,
            unreadable=_unreadable,
            unscored=_unscored,
        ):
            values[row] = entropy
        return values


def _cells(batch: Mapping[str, Any], images: str | None) -> dict[str, Any]:
    """Return the columns; of a lazy batch of datasets those besides the images as they are stored, not decoded."""
    stored: Any = getattr(batch, "pa_table", None)
    decoded = list(batch) if stored is None else [images]
    return {name: batch[name] if name in decoded else stored.column(name).to_pylist() for name in batch}


def _unreadable(row: int, place: int, why: str) -> None:
    why = why.encode("unicode_escape").decode() if not why.isprintable() else why
    _log.warning(
        "row %d of the batch, image %d: cannot be read, its visual entropy is NaN: %s", row + 1, place + 1, why
    )


def _unscored(row: int, what: list[str]) -> None:
    _log.warning("row %d of the batch: %s has no visual entropy, the row's is NaN", row + 1, " and ".join(what))
