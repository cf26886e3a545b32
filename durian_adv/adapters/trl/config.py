"""TRL: the configuration of ``DurianGRPOTrainer``; import it from ``durian_adv.adapters.trl``."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import trl
from trl import GRPOConfig

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError, ArgumentTypeError
from durian_adv._src.options import OPTIONS, fields, of_run
from durian_adv.data.scoring import towers

PREFIX = "durian_"
_FEATURES = (
    "durian_features",
    str,
    dataclasses.field(
        default="patches",
        metadata={
            "help": "Features of an image for its entropy: patches of the vision tower, before they are merged or "
            "projected, or the projected tokens that the language model sees (default: patches).",
            "choices": list(towers.FEATURES),
        },
    ),
)
_Fields: Any = dataclasses.make_dataclass("_Fields", [*fields(PREFIX, eps=1e-4), _FEATURES], init=False)
_DEFAULTS = {field.name: field for field in dataclasses.fields(_Fields)}


def check_base(made: Any, mixin: type, name: str, imported: type) -> None:
    """Check that what stands behind a mixin is TRL's class of this name, as it is now and was when it was imported.

    Raises:
        ArgumentTypeError: it is another, such as ``AsyncGRPOTrainer``.
        RuntimeError: a package replaced TRL's class after the import.
    """
    if isinstance(made, getattr(trl, name)):
        return
    if isinstance(made, imported):
        raise RuntimeError(
            f"trl.{name} is another class than when durian_adv.adapters.trl was imported; import the package "
            "that replaces it (unsloth) first"
        )
    bases = type(made).__mro__
    behind = next(base for base in bases[bases.index(mixin) + 1 :] if base is not _Fields)
    raise ArgumentTypeError(
        mixin.__name__, f"a subclass of trl.{name} behind it, which scores whole batches", behind.__name__
    )


class DurianConfig(_Fields):
    """The options of Durian beside those of a GRPO configuration, whose constructor, and defaults, stay its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the options of Durian out, and give the others to the configuration."""
        self._take(kwargs)
        super().__init__(*args, **kwargs)

    def __post_init__(self) -> None:
        """Check the options, before any model is loaded."""
        check_base(self, DurianConfig, "GRPOConfig", GRPOConfig)
        super().__post_init__()
        self._check()

    @classmethod
    def extending(cls, config: Any, **options: Any) -> Any:
        """Return a finished configuration, such as a launcher makes, with options of Durian beside its own.

        Args:
            config: of the class that stands behind ``DurianConfig`` as a base of this one; it is left as it is.
            options: by their names in ``DurianGRPOConfig``.

        Raises:
            ArgumentTypeError: a configuration of another class.
            ArgumentError: an option that does not exist, or a value that does not fit.
        """
        if not issubclass(cls, type(config)):
            raise ArgumentTypeError("config", f"a configuration that {cls.__name__} extends", type(config).__name__)
        for name in options.keys() - _DEFAULTS.keys():
            raise ArgumentError(name, f"one of {', '.join(_DEFAULTS)}", "an unknown option")
        made = copy.copy(config)
        made.__class__ = cls
        check_base(made, DurianConfig, "GRPOConfig", GRPOConfig)
        made._take(options)
        made._check()
        return made

    def _take(self, options: dict[str, Any]) -> None:
        for name, field in _DEFAULTS.items():
            factory = field.default_factory
            default = field.default if isinstance(factory, dataclasses._MISSING_TYPE) else factory()
            setattr(self, name, options.pop(name, default))

    def _check(self) -> None:
        of_run({**self.durian_options, "rollout_log": self.durian_rollout_log}, PREFIX)
        checks.choice("durian_features", self.durian_features, towers.FEATURES)
        if self.scale_rewards != "group":
            raise ArgumentError(
                "scale_rewards", "'group', as Durian scales rewards by durian_weights", f"{self.scale_rewards!r}"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ArgumentError(
                "multi_objective_aggregation",
                "'sum_then_normalize', as Durian normalizes the weighted sum of the rewards, not each of them (GDPO)",
                f"{self.multi_objective_aggregation!r}",
            )

    @property
    def durian_options(self) -> dict[str, Any]:
        """The options of ``AdvantageEstimator``, under their names there."""
        return {name: getattr(self, PREFIX + name) for name in OPTIONS}


@dataclasses.dataclass(init=False)
class DurianGRPOConfig(DurianConfig, GRPOConfig):
    r"""Configuration class for the [`DurianGRPOTrainer`]: [`~trl.GRPOConfig`] with the options of Durian.

    Parameters:
        durian_estimator (`str`, *optional*, defaults to `"durian"`):
            Advantage estimator: `"durian"`, `"grpo"`, `"dr_grpo"`, `"batch_std"`, `"rloo"`, `"reinforce_plus_plus"`,
            `"reinforce_plus_plus_baseline"` or `"difficulty_prior"`.
        durian_weights (`list[float]`, *optional*, defaults to `[0.1, 0.2, 0.7]`):
            Weights of the GRPO, perceptual and reasoning components, and of the category component if there is a
            fourth, for which the dataset needs a column `category`. A component with weight 0 is not computed.
        durian_entropy_quantiles (`list[float]`, *optional*, defaults to `[0.25, 0.75]`):
            Quantile levels between the buckets of visual entropy.
        durian_num_confidence_buckets (`int`, *optional*, defaults to `12`):
            Number of equally probable confidence buckets.
        durian_confidence_reduction (`str`, *optional*, defaults to `"sum"`):
            Confidence of a completion: `"sum"` or `"mean"` of its tokens' log-probabilities.
        durian_no_signal (`str`, *optional*, defaults to `"keep"`):
            `"keep"` or `"drop"`: whether prompts whose rewards are all equal count in quantiles and shared stds.
        durian_window (`int`, *optional*, defaults to `0`):
            Number of recent prompts whose scores and rewards also count in quantiles and shared stds. 0 is the paper's
            method, for which a generation batch needs many prompts.
        durian_eps (`float`, *optional*, defaults to `1e-4`):
            Added to every std, in units of rewards. The default is TRL's own, so that weights `[1, 0, 0]` are TRL's
            GRPO; the paper's runs add 1e-6.
        durian_correction (`int`, *optional*, defaults to `1`):
            Every std divides by the number of its rewards minus this, 0 or 1.
        durian_success_threshold (`float`, *optional*, defaults to `0.5`):
            Reward above which a completion counts as correct, in metrics and the difficulty prior.
        durian_weighting (`str`, *optional*, defaults to `"exponential"`):
            Weight of a prompt as a function of its accuracy, for the estimator `"difficulty_prior"`: `"linear"`,
            `"exponential"`, `"power"`, `"focal"`, `"logarithmic"`, `"logistic"` or `"uniform"`.
        durian_rollout_log (`str`, *optional*):
            Folder for a parquet file of each generation batch, with rewards, scores and advantages, for
            `durian-adv report`. `None`: nothing is written.
        durian_features (`str`, *optional*, defaults to `"patches"`):
            Features of an image for its entropy: `"patches"` of the vision tower, before they are merged or projected,
            or the `"projected"` tokens that the language model sees.
    """
