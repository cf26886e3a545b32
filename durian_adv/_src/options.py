"""Each option of the library once: its default, its check, its help text.

The arguments of the command and the configuration of every adapter are made from here. Signatures of public functions
are written out, for readers and editors; ``tests/test_options.py`` holds them against this table.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError

ESTIMATORS = (
    "durian",
    "grpo",
    "dr_grpo",
    "batch_std",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "difficulty_prior",
)
WEIGHTINGS = ("linear", "exponential", "power", "focal", "logarithmic", "logistic", "uniform")
NO_SIGNAL = ("keep", "drop")
REDUCTIONS = ("sum", "mean")
_COMPONENTS = 3, 4  # grpo, perceptual, reasoning, and perhaps category


class Option(NamedTuple):
    """One option."""

    name: str
    default: Any
    check: Callable[[Any], Any]  # returns the value as functions take it; raises an ArgumentError under the name
    help: str  # a noun phrase with its unit, without the default
    kind: Any  # the annotation in a trainer's configuration, plain enough for its parser
    parse: Callable[[str], Any]  # one word of a command line
    choices: tuple[Any, ...] | None = None
    words: str | None = None  # "+" for several on a command line
    metavar: str | tuple[str, ...] | None = None


def _one_of(name: str, choices: tuple[str, ...], value: Any) -> str:
    checks.choice(name, value, choices)
    return str(value)


def _weights(value: Any) -> tuple[float, ...]:
    count = len(value) if isinstance(value, Sequence) else min(_COMPONENTS)
    if count not in _COMPONENTS:
        raise ArgumentError("weights", "3 numbers, or 4 with category", count)
    weights = checks.weights(value, count)
    if sum(weights) == 0:
        raise ArgumentError("weights", "a positive sum", weights)
    return weights


def _window(value: Any) -> int:
    size = checks.integer("window", value, "an integer >= 0")
    if size < 0:
        raise ArgumentError("window", "an integer >= 0", size)
    return size


OPTIONS = {
    option.name: option
    for option in (
        Option(
            "estimator",
            "durian",
            partial(_one_of, "estimator", ESTIMATORS),
            "advantage estimator",
            str,
            str,
            choices=ESTIMATORS,
        ),
        Option(
            "weights",
            (0.1, 0.2, 0.7),
            _weights,
            "weights of the GRPO, perceptual and reasoning components, and of the category component where there are "
            "categories; a component with weight 0 is left out",
            list[float],
            float,
            words="+",
            metavar="W",
        ),
        Option(
            "entropy_quantiles",
            (0.25, 0.75),
            lambda value: checks.levels("entropy_quantiles", value),
            "quantile levels between the buckets of visual entropy, each in (0, 1)",
            list[float],
            float,
            words="+",
            metavar="LEVEL",
        ),
        Option(
            "num_confidence_buckets",
            12,
            lambda value: checks.bucket_count("num_confidence_buckets", value),
            "number of equally probable confidence buckets",
            int,
            int,
            metavar="N",
        ),
        Option(
            "confidence_reduction",
            "sum",
            partial(_one_of, "confidence_reduction", REDUCTIONS),
            "reduction of a response's token log-probabilities, in nats, to its confidence",
            str,
            str,
            choices=REDUCTIONS,
        ),
        Option(
            "no_signal",
            "keep",
            partial(_one_of, "no_signal", NO_SIGNAL),
            "role in quantiles and shared stds of prompts whose rewards are all equal",
            str,
            str,
            choices=NO_SIGNAL,
        ),
        Option(
            "window",
            0,
            _window,
            "number of recent prompts whose scores and rewards also count in quantiles and shared stds; 0 is the "
            "paper's method, for which a batch needs many prompts",
            int,
            int,
            metavar="PROMPTS",
        ),
        Option(
            "eps",
            1e-6,
            checks.epsilon,
            "constant added to every std, in units of rewards",
            float,
            float,
            metavar="X",
        ),
        Option(
            "correction",
            1,
            checks.correction,
            "degrees of freedom subtracted from the number of rewards in every std: 1 for the sample std, 0 for the "
            "population std",
            int,
            int,
            choices=(0, 1),
        ),
        Option(
            "success_threshold",
            0.5,
            lambda value: checks.number("success_threshold", value),
            "reward above which a rollout counts as correct",
            float,
            float,
            metavar="REWARD",
        ),
        Option(
            "weighting",
            "exponential",
            partial(_one_of, "weighting", WEIGHTINGS),
            "weight of a prompt as a function of its accuracy, for the estimator difficulty_prior",
            str,
            str,
            choices=WEIGHTINGS,
        ),
    )
}


def _folder(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ArgumentError("rollout_log", "the path of a folder, or None", f"{value!r}")
    return value


# what every adapter has beside the options of the estimator, which does nothing on disk
ROLLOUT_LOG = Option(
    "rollout_log",
    None,
    _folder,
    "folder for a parquet file of each step's rollouts, with rewards, scores and advantages, for durian-adv report; "
    "none: nothing is written",
    str | None,
    str,
    metavar="FOLDER",
)
_ALL = {**OPTIONS, ROLLOUT_LOG.name: ROLLOUT_LOG}


def of_run(given: Mapping[str, Any], where: str = "") -> tuple[dict[str, Any], str | None]:
    """Return the options of the estimator, as ``checked``, and the folder of the rollout log, None for none."""
    values = checked(given, where, allowed=_ALL)
    return values, values.pop(ROLLOUT_LOG.name)


def checked(given: Mapping[str, Any], where: str = "", *, allowed: Iterable[str] = OPTIONS) -> dict[str, Any]:
    """Return the options by name, defaults filled in; ``where`` stands before their names in errors.

    Raises:
        ArgumentError: an unknown name, or a value that does not fit, as ``{where}{name}``.
    """
    names = list(allowed)
    for name in given:
        if name not in names:
            raise ArgumentError(f"{where}{name}", f"one of {', '.join(names)}", "an unknown option")
    values = {}
    for name in names:
        try:
            values[name] = _ALL[name].check(given.get(name, _ALL[name].default))
        except ArgumentError as error:
            # weights[1] of durian_ is durian_weights[1]
            raise error.renamed(f"{where}{error.name}") from None
    name = values.get("estimator", "")
    if values.get("window") and name.startswith("reinforce"):
        raise ArgumentError(f"{where}window", f"0 for the estimator {name!r}", values["window"])
    return values


def fields(prefix: str = "", **defaults: Any) -> list[tuple[str, Any, Any]]:
    """Return fields for ``dataclasses.make_dataclass``: a trainer's configuration, with its own ``defaults``."""
    made = []
    for option in _ALL.values():
        default = defaults.get(option.name, option.default)
        metadata: dict[str, Any] = {"help": f"{option.help[0].upper()}{option.help[1:]} (default: {shown(default)})."}
        if option.choices is not None:
            metadata["choices"] = list(option.choices)
        if isinstance(default, tuple):  # parsers of trainers make lists, and a default may not be shared
            made.append((prefix + option.name, option.kind, _list_field(default, metadata)))
        else:
            made.append((prefix + option.name, option.kind, dataclasses.field(default=default, metadata=metadata)))
    return made


def _list_field(default: tuple[Any, ...], metadata: dict[str, Any]) -> Any:
    return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)


def add_arguments(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Declare options as arguments of a command: ``--num-confidence-buckets`` for ``num_confidence_buckets``."""
    for name in names:
        option = OPTIONS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=option.parse,
            default=option.default,
            choices=option.choices,
            metavar=option.metavar,
            nargs=option.words,
            help=f"{option.help} (default: {shown(option.default)})",
        )


def shown(value: Any) -> str:
    """Return a default as it is written on a command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def require_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a part of a configuration as a dict; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(where, "options by their names", f"{value!r}")
    return dict(value)
