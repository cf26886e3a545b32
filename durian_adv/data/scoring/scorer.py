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
from durian_adv.data.scoring.cache import Cache
from durian_adv.data.scoring.encoders import EFFICIENTNET, Encoder, load_encoder
from durian_adv.data.scoring.rows import row_entropies

COLUMN = "visual_entropy"
IMAGE_COLUMNS = ("images", "image")
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
            raise ValueError(f"batch_size: expected at least 1 image, got {batch_size}")
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
            cells = kept.column(image_column(kept.column_names, self.images)).to_pylist()
            return kept.append_column(COLUMN, pa.array(self._entropies(cells)))
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"batch: expected an Arrow table or a mapping of columns, got {type(batch).__name__} "
                "(batch_format='pyarrow')"
            )
        values = self._entropies(batch[image_column(list(batch), self.images)])
        # datasets adds what is returned to what it has, and would decode and encode every image that comes back
        return {**(batch if isinstance(batch, dict) else {}), COLUMN: values}

    def _entropies(self, cells: Any) -> np.ndarray[Any, Any]:
        encoder, known = self.load()
        values = np.full(len(cells), math.nan)
        for row, entropy in row_entropies(
            cells, encoder, known, batch_size=self.batch_size, root=self.root, unreadable=_warn
        ):
            values[row] = entropy
        return values


def image_column(columns: list[str], wanted: str | None) -> str:
    """Return the column that holds the images."""
    names = IMAGE_COLUMNS if wanted is None else (wanted,)
    for name in names:
        if name in columns:
            return name
    raise ValueError(f"images: expected a column {' or '.join(map(repr, names))}, got {', '.join(columns) or 'none'}")


def _warn(row: int, place: int, why: str) -> None:
    _log.warning("row %d of the batch, image %d: cannot be read, its visual entropy is NaN: %s", row, place, why)
