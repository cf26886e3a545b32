"""The rollout log of a run with one of our adapters: a folder with a parquet file per step, ``durian`` to the readers.

A rollout is a row. ``step_00000012.parquet`` holds the batch of step 12; where a trainer makes several batches in one
step, each is normalized alone, and the next ones are ``step_00000012_1.parquet`` and so on. A file has its name when it
is whole. One process of a run writes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.data import aside
from durian_adv.data.logs.rows import identity

if TYPE_CHECKING:
    from durian_adv.estimator import Record

logger = logging.getLogger(__name__)

PROMPT_ID = "prompt_id"  # a dataset's column of ids, which adapters give as prompts
_NAME = re.compile(r"step_(\d+)(?:_(\d+))?\.parquet")
_TYPES = {
    "step": "int64",
    "batch": "int64",  # of a step, 0 for its first
    "prompt": "string",  # the id of the prompt, the same in all steps where the trainer knows one
    "text": "string",  # what to call the prompt
    "group": "int64",  # rollouts of a batch with one number were compared with one another
    "rollout": "int64",  # the row of the batch
    "reward": "float64",
    "visual_entropy": "float64",
    "confidence": "float64",
    "category": "string",
    "valid": "bool",  # False: without influence, its advantage is 0
    "advantage": "float64",  # as the update had it
}


class RolloutLog:
    """Writes the batches of a run into a folder, step by step.

    A run that is resumed, or started anew, writes its steps in the place of those that the folder holds from an earlier
    one: with its first batch, files of that step and of later ones get other names (``.replaced`` behind them), which a
    warning tells and which no command reads. Steps before stay: they are what the resumed run goes on from.

    Args:
        folder: is made, with the folders above it, if it does not exist.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        OSError: the folder cannot be made, or a file cannot be written, by its path.

    >>> from durian_adv.estimator import AdvantageEstimator
    >>> estimator, log = AdvantageEstimator(estimator="grpo"), RolloutLog(getfixture("tmp_path") / "rollouts")
    >>> _ = estimator([1.0, 0.0, 0.5, 0.5], ["a", "a", "b", "b"])
    >>> log.write(12, estimator.record).name
    'step_00000012.parquet'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._written: tuple[int, int] | None = None  # step and batch
        _arrow()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        step: int,
        record: Record | None,
        *,
        prompts: Sequence[Any] | None = None,
        texts: Sequence[str | None] | None = None,
        category: Sequence[Any] | None = None,
        exists: Sequence[Any] | torch.Tensor | None = None,
    ) -> Path:
        """Write a batch; return its file.

        Args:
            step: of the trainer, never less than before.
            record: of the estimator, after it was called on the batch.
            prompts: an id for each row of the call, which stays the same over the run; else those of the call.
            texts: what to call each row's prompt; else its id.
            category: the kind of each row's prompt, with a weight or without.
            exists: false for rows that are no rollouts (padding).

        Raises:
            ArgumentError: the estimator was not called, a step that goes back, or not one entry per row.
            OSError: the file cannot be written, or another run has written it since this one began.
        """
        if record is None:
            raise ArgumentError("record", "the record of an estimator that was called", "None")
        if self._written is None:
            self._set_aside(step)
        elif step < self._written[0]:
            raise ArgumentError("step", f"{self._written[0]}, of the batch before, or a later one", step)
        batch = self._written[1] + 1 if self._written is not None and step == self._written[0] else 0
        columns = _columns(record, prompts, texts, category, exists)
        rows = len(columns["prompt"])
        path = self.folder / f"step_{step:08d}{f'_{batch}' if batch else ''}.parquet"
        _write({"step": [step] * rows, "batch": [batch] * rows, **columns}, path)
        self._written = step, batch
        return path

    def _set_aside(self, step: int) -> None:
        """Give other names to what an earlier run has written from this step on."""
        moved = []
        for path in sorted(self.folder.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found is not None and int(found[1]) >= step:
                others = len(list(self.folder.glob(f"{path.name}.replaced*")))
                os.replace(path, path.with_name(f"{path.name}.replaced{f'_{others}' if others else ''}"))
                moved.append(path.name)
        if moved:
            logger.warning(
                "%s: %d files of an earlier run, %s to %s, are renamed to *.replaced, as this run begins at step %d",
                *(self.folder, len(moved), moved[0], moved[-1], step),
            )


def content_id(*parts: Any) -> str:
    """Return an id made of what a prompt asks, for datasets without one.

    Args:
        parts: texts, numbers, bytes, images of PIL, arrays, None, and lists and objects of them.

    Returns:
        24 hexadecimal digits, the same for the same contents.

    Raises:
        ArgumentTypeError: something else.

    >>> content_id("Find x.", b"image 1") == content_id("Find x.", b"image 2")
    False
    """
    digest = hashlib.blake2b(digest_size=12)
    _digest(digest.update, parts)
    return digest.hexdigest()


def _digest(update: Callable[[bytes], object], value: Any) -> None:
    if isinstance(value, Mapping):
        update(b"{%d" % len(value))
        for name in sorted(value):
            _digest(update, name)
            _digest(update, value[name])
    elif isinstance(value, (list, tuple)):
        update(b"[%d" % len(value))
        for part in value:
            _digest(update, part)
    elif hasattr(value, "tobytes"):  # an image of PIL, an array
        size = value.shape if hasattr(value, "shape") else value.size
        _digest(update, (str(getattr(value, "mode", None) or value.dtype), *size, value.tobytes()))
    elif isinstance(value, bytes):
        update(b"b%d:" % len(value) + value)
    elif value is None or isinstance(value, (str, bool, int, float)):
        text = f"{type(value).__name__}{value}".encode(errors="surrogatepass")
        update(b"%d:" % len(text) + text)
    else:
        expected = f"text, numbers, bytes, images, arrays, lists and objects of them, or a column {PROMPT_ID}"
        raise ArgumentTypeError("prompt", expected, type(value).__name__)


def _columns(
    record: Record, prompts: Any, texts: Any, category: Any, exists: Any
) -> dict[str, Sequence[Any] | torch.Tensor]:
    """Return a column for each of ``_TYPES`` but the first two: an entry per rollout that has a prompt."""
    kept = record.prompt >= 0
    if exists is not None:
        flags = torch.as_tensor(exists, dtype=torch.bool).to(kept.device)
        kept = kept & flags[record.row]
    row, group = record.row[kept].tolist(), record.prompt[kept].tolist()
    given = {"prompts": prompts, "texts": texts, "category": category}
    for name, values in given.items():
        if values is not None and len(values) <= max(row, default=-1):
            raise ArgumentError(name, "an entry per row of the batch", f"{len(values)}")
    ids = [record.names[number] for number in group] if prompts is None else [prompts[i] for i in row]
    scores = {"visual_entropy": record.visual_entropy, "confidence": record.confidence}
    numbers = {"reward": record.rewards, **scores, "valid": record.valid, "advantage": record.advantages}
    return {
        "prompt": [_text(value) for value in ids],
        "text": [None] * len(row) if texts is None else [texts[i] for i in row],
        "group": group,
        "rollout": row,
        "category": [None if category is None else _text(category[i]) for i in row],
        **{name: [None] * len(row) if values is None else values[kept].tolist() for name, values in numbers.items()},
    }


def _text(value: Any) -> str | None:
    """Return an id as text; None for None and NaN."""
    value = value.item() if hasattr(value, "item") else value  # a number of NumPy
    return value if value is None or isinstance(value, str) else None if value != value else identity(value)


def _write(columns: Mapping[str, Any], path: Path) -> None:
    arrow = _arrow()
    if path.exists():
        raise FileExistsError(f"{path}: another run has written it since this one began")
    types = {name: getattr(arrow, "bool_" if kind == "bool" else kind)() for name, kind in _TYPES.items()}
    arrays = [arrow.array(columns[name], kind, from_pandas=True) for name, kind in types.items()]  # NaN is null
    with aside.naming(path), aside.written([path]) as (partial,):
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.table(arrays, schema=arrow.schema(types.items())), partial)


@functools.cache
def _arrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "rollout_log: a log of parquet files needs pyarrow: pip install 'durian-adv[report]'"
        ) from None
    return pyarrow
