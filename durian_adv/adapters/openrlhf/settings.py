"""OpenRLHF: the options of a run with Durian, from the job's environment, and names that its parts share."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from durian_adv._src import checks, options
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv.data.scoring import towers as vision

HOOK = "durian_adv.adapters.openrlhf.setup"
OPTIONS = "DURIAN_OPTIONS"
ENTROPY_METHOD = "durian_entropy"
OLDEST_TESTED, NEWEST_TESTED = "0.10.2", "0.11.2"
TESTED = f"{OLDEST_TESTED} to {NEWEST_TESTED}"
ESTIMATOR = "group_norm"

# eps is OpenRLHF's own, so that weights [1, 0, 0] are its group_norm; the paper's runs add 1e-6
EPS = 1e-9
# options of this adapter beside those of the estimator
TABLE, FEATURES = "entropy_table", "features"


class Settings(NamedTuple):
    """What a run sets: the options of ``AdvantageEstimator``, and where the visual entropy comes from."""

    options: dict[str, Any]
    entropy_table: str | None  # a file with a JSON object from image references, as the dataset has them, to entropies
    features: str  # what an entropy is computed from in the actor: "patches" of the tower, or "projected" tokens
    rollout_log: str | None = None  # a folder


def options_of(environment: Mapping[str, str]) -> Settings:
    """Read the options from the variable ``DURIAN_OPTIONS``: a JSON object, or the path of a file with one.

    Raises:
        TypeError, ValueError: an unknown option or variable, a value that does not fit, or a file that cannot be read,
            by its full name.
    """
    for name in environment:
        if str(name).startswith("DURIAN_") and name != OPTIONS:
            raise ArgumentError(name, f"no other variable than {OPTIONS}, a JSON object or the path of a file")
    text = environment.get(OPTIONS, "")
    if not isinstance(text, str):  # in a file of YAML, an object without quotes
        raise ArgumentTypeError(OPTIONS, "text, a JSON object in quotes or a path", type(text).__name__)
    text = text.strip()
    if text and not text.startswith("{"):
        return _settings(_read_object(text, OPTIONS), text)
    return _settings(_as_object(text or "{}", OPTIONS), OPTIONS)


def _settings(given: Mapping[str, Any], where: str) -> Settings:
    known = [*options.OPTIONS, TABLE, FEATURES, options.ROLLOUT_LOG.name]
    for name in given:
        if name not in known:
            raise ArgumentError(f"{where}.{name}", f"one of {', '.join(known)}", "an unknown option")
    rest = {name: value for name, value in given.items() if name not in (TABLE, FEATURES)}
    table, features = given.get(TABLE), given.get(FEATURES, "patches")
    checks.choice(f"{where}.{FEATURES}", features, vision.FEATURES)
    if not isinstance(table, str | None):
        raise ArgumentTypeError(f"{where}.{TABLE}", "the path of a file", type(table).__name__)
    of_estimator, log = options.of_run({"eps": EPS, **rest}, f"{where}.")
    return Settings(of_estimator, table, features, log)


def read_table(file: str) -> dict[str, float]:
    """Read a table from image references to entropies; null means that the image has none.

    Raises:
        TypeError, ValueError: not a file with a JSON object of numbers.
    """
    table = _read_object(file, f"{OPTIONS}.{TABLE}")
    return {name: float("nan") if x is None else checks.number(f"{file}[{name!r}]", x) for name, x in table.items()}


def _read_object(file: str, option: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError: not UTF-8, or no path
        raise ArgumentError(option, "a file that can be read", f"{file!r}: {error}") from None
    return _as_object(text, file)


def _as_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentError(where, "a JSON object", error) from None
    if not isinstance(value, dict):
        raise ArgumentError(where, "a JSON object", type(value).__name__)
    return value


def misfit(what: str) -> RuntimeError:
    """Return the error for an OpenRLHF that has not what is used of it."""
    try:
        found = importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        found = "of an unknown version"
    return RuntimeError(
        f"OpenRLHF {found} does not fit durian_adv.adapters.openrlhf, which was tested with {TESTED}: {what}. "
        "Install one of these"
    )
