"""EasyR1: its main with a trainer and a configuration that know the estimator ``durian``.

With ``algorithm.adv_estimator=durian`` advantages are Durian's; ``durian.*`` are its options, on the command line or in
the configuration file. All else, the other estimators included, is EasyR1's own code.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import verl

from durian_adv._src.options import of_run, require_mapping
from durian_adv.adapters._fit import misfits
from durian_adv.adapters._preflight import UNUSED, described, open_log, prompts_check
from durian_adv.adapters.easyr1.batch import check_columns, put_advantages
from durian_adv.data.logs.writer import RolloutLog
from durian_adv.estimator import AdvantageEstimator

logger = logging.getLogger(__name__)

NAME = "durian"
LOG = f"{NAME}.rollout_log"
OLDEST_TESTED, NEWEST_TESTED = "0.3.2", "0.3.3.dev0"
REVISION = "b44b311b669bf1fd1aa2fc36f2251482ba33cb16"  # of the newest, which has no release


def _misfit(what: str) -> str:
    found = getattr(verl, "__version__", "of no version")
    return (
        f"the installed verl {found} does not fit durian_adv.adapters.easyr1, which was tested with EasyR1 "
        f"{OLDEST_TESTED} and {NEWEST_TESTED} ({REVISION[:7]}): {what}"
    )


try:
    from verl.trainer import main as easyr1
    from verl.trainer import ray_trainer
    from verl.trainer.main import PPOConfig
    from verl.trainer.ray_trainer import RayPPOTrainer
except ImportError as error:
    if not (error.name or "").startswith("verl"):
        raise  # a package that EasyR1 needs
    text = f"{error}. EasyR1 is a fork of verl under the same name; is it upstream verl?"
    raise ImportError(_misfit(text)) from None

# What is used of EasyR1: where, the name, and the parameters it is called with
_USED = (
    (easyr1, "main", ()),
    (easyr1, "PPOConfig", ()),
    (easyr1, "RayPPOTrainer", None),
    (easyr1, "Runner", None),
    (ray_trainer, "compute_advantage", ("data", "adv_estimator", "gamma", "lam")),
    (ray_trainer, "AdvantageEstimator", None),
    (RayPPOTrainer, "__init__", ("config", "train_dataloader")),
    (RayPPOTrainer, "_make_batch_data", ("metrics",)),
    (RayPPOTrainer, "fit", ()),
)


def check_fit() -> None:
    """Raise RuntimeError if this EasyR1 does not have what is used here."""
    for misfit in misfits(_USED):
        raise RuntimeError(_misfit(misfit))
    if NAME in {member.value for member in ray_trainer.AdvantageEstimator}:
        raise RuntimeError(_misfit(f"it has an estimator {NAME!r} of its own"))


def options_of(config: Any) -> tuple[dict[str, Any], str | None]:
    """Read the options of the estimator and the folder of the rollout log from ``durian`` of the configuration.

    Raises:
        ArgumentError: an option that does not exist, or a value that does not fit, by its full name.
    """
    return of_run(require_mapping(config.durian, NAME), f"{NAME}.")


@dataclass
class DurianPPOConfig(PPOConfig):
    """EasyR1's configuration with a part ``durian``, whose keys are the options of ``AdvantageEstimator``."""

    durian: dict[str, Any] = field(default_factory=dict)

    def post_init(self) -> None:
        """Check the options where EasyR1 completes its own, before Ray starts."""
        super().post_init()
        options_of(self)


class DurianRayPPOTrainer(RayPPOTrainer):
    """EasyR1's ``RayPPOTrainer`` that knows the estimator ``durian``; with another one it does nothing of its own.

    Raises:
        RuntimeError: this version of EasyR1 does not have the internals that are used here.
        ValueError: ``durian.weights`` count the entropy of images that the dataset has, and it has no column of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = inspect.signature(RayPPOTrainer.__init__).bind(self, *args, **kwargs).arguments["config"]
        self._durian: AdvantageEstimator | None = None
        self._log: RolloutLog | None = None
        if config.algorithm.adv_estimator != NAME:
            if config.durian:
                logger.warning(UNUSED, NAME, "algorithm.adv_estimator", config.algorithm.adv_estimator)
            super().__init__(*args, **kwargs)
            return
        check_fit()
        options, folder = options_of(config)
        self._durian = AdvantageEstimator(**options)
        self._log = None if folder is None else open_log(LOG, folder)
        # EasyR1 admits its own names alone; what it asks of GRPO holds here too
        with _set(config.algorithm, adv_estimator="grpo"):
            super().__init__(*args, **kwargs)
        examples = getattr(self.train_dataloader.dataset, "dataset", None)
        columns = getattr(examples, "column_names", None)
        images = {config.data.image_key, config.data.video_key} & {*(columns or ())}
        if columns is not None:
            check_columns(images, columns, self._durian)
        check = prompts_check(config.data.rollout_batch_size, self._durian, bool(images))
        level = logging.INFO if check.state == "ok" else logging.WARNING
        logger.log(level, "Durian: %s; %s", described(self._durian), check.finding)

    def _make_batch_data(self, metrics: dict[str, Any]) -> Any:
        self._step_metrics = metrics  # of this step: what EasyR1 logs at its end
        return super()._make_batch_data(metrics=metrics)

    def fit(self) -> None:
        """Train; advantages are computed where EasyR1 computes them, from its whole batch."""
        if self._durian is None:
            super().fit()
            return
        with _set(ray_trainer, compute_advantage=self._compute_advantage):
            super().fit()

    def _compute_advantage(self, data: Any, adv_estimator: str, gamma: float = 1.0, lam: float = 1.0) -> Any:
        assert self._durian is not None
        self._step_metrics.update(put_advantages(data, self._durian, self._log, self.global_step))
        return data


@contextmanager
def _set(where: Any, **values: Any) -> Iterator[None]:
    """Set attributes, and set them back."""
    before = {name: getattr(where, name) for name in values}
    for name, value in values.items():
        setattr(where, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(where, name, value)


def main() -> None:
    """Run EasyR1's ``main`` with a configuration and a trainer that know the estimator ``durian``."""
    check_fit()
    # Ray takes the names that Runner uses along into its process, as they are here when it starts
    with _set(easyr1, PPOConfig=DurianPPOConfig, RayPPOTrainer=DurianRayPPOTrainer):
        easyr1.main()
