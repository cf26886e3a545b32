"""TRL: the configuration of ``DurianGRPOTrainer``; import it from ``durian_adv.adapters.trl``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig

from durian_adv._src import checks
from durian_adv.data.scoring import towers
from durian_adv.window import windowed_components


@dataclass
class DurianGRPOConfig(GRPOConfig):
    r"""Configuration class for the [`DurianGRPOTrainer`]: [`~trl.GRPOConfig`] with the options of Durian.

    Parameters:
        durian_weights (`list[float]`, *optional*, defaults to `[0.1, 0.2, 0.7]`):
            Weights of the GRPO, perceptual and reasoning component. A component with weight 0 is not computed.
        durian_entropy_quantiles (`list[float]`, *optional*, defaults to `[0.25, 0.75]`):
            Levels of the quantiles between the buckets of visual entropy.
        durian_num_confidence_buckets (`int`, *optional*, defaults to `12`):
            Number of equally probable buckets of confidence.
        durian_confidence_reduction (`str`, *optional*, defaults to `"sum"`):
            Confidence of a completion: `"sum"` or `"mean"` of its tokens' log-probabilities.
        durian_features (`str`, *optional*, defaults to `"patches"`):
            Features of an image for its entropy: `"patches"` of the vision tower, before they are merged or projected,
            or the `"projected"` tokens that the language model sees.
        durian_window (`int`, *optional*, defaults to `0`):
            Number of recent prompts whose scores and rewards count in quantiles and shared stds. 0 is the paper's
            method, for which a generation batch needs many prompts.
        durian_eps (`float`, *optional*, defaults to `1e-4`):
            Added to every std, in units of rewards. The default is TRL's own, so that weights `[1, 0, 0]` are TRL's
            GRPO; the paper's runs add 1e-6.
        durian_success_threshold (`float`, *optional*, defaults to `0.5`):
            A completion counts as correct in the metrics if its reward exceeds this.
    """

    durian_weights: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.7],
        metadata={
            "help": "Weights of the GRPO, perceptual and reasoning component. A component with weight 0 is not "
            "computed."
        },
    )
    durian_entropy_quantiles: list[float] = field(
        default_factory=lambda: [0.25, 0.75],
        metadata={"help": "Levels of the quantiles between the buckets of visual entropy."},
    )
    durian_num_confidence_buckets: int = field(
        default=12, metadata={"help": "Number of equally probable buckets of confidence."}
    )
    durian_confidence_reduction: str = field(
        default="sum",
        metadata={
            "help": "Confidence of a completion: `'sum'` or `'mean'` of its tokens' log-probabilities.",
            "choices": ["sum", "mean"],
        },
    )
    durian_features: str = field(
        default="patches",
        metadata={
            "help": "Features of an image for its entropy: `'patches'` of the vision tower, before they are merged or "
            "projected, or the `'projected'` tokens that the language model sees.",
            "choices": list(towers.FEATURES),
        },
    )
    durian_window: int = field(
        default=0,
        metadata={
            "help": "Number of recent prompts whose scores and rewards count in quantiles and shared stds. 0 is the "
            "paper's method, for which a generation batch needs many prompts."
        },
    )
    durian_eps: float = field(
        default=1e-4,
        metadata={
            "help": "Added to every std, in units of rewards. The default is TRL's own, so that weights `[1, 0, 0]` "
            "are TRL's GRPO; the paper's runs add 1e-6."
        },
    )
    durian_success_threshold: float = field(
        default=0.5,
        metadata={"help": "A completion counts as correct in the metrics if its reward exceeds this."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("durian_confidence_reduction", self.durian_confidence_reduction, ("sum", "mean"))
        checks.choice("durian_features", self.durian_features, towers.FEATURES)
        checks.number("durian_success_threshold", self.durian_success_threshold)
        empty = torch.zeros(0)
        try:  # the library's own checks, before any model is loaded
            windowed_components(
                empty[:, None],
                visual_entropy=empty,
                confidence=empty,
                window=None,
                size=self.durian_window,
                **self.durian_options,
            )
        except (TypeError, ValueError) as error:
            name, text = str(error).split(":", 1)
            raise type(error)(f"durian_{'window' if name == 'size' else name}:{text}") from None
        if self.scale_rewards != "group":
            raise ValueError(
                f"scale_rewards: expected 'group', got {self.scale_rewards!r}: Durian scales rewards by durian_weights"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "multi_objective_aggregation: expected 'sum_then_normalize' (Durian normalizes the weighted sum of the "
                f"rewards), got {self.multi_objective_aggregation!r}"
            )

    @property
    def durian_options(self) -> dict[str, Any]:
        """What ``durian_components`` takes beside the data."""
        return {
            "weights": self.durian_weights,
            "entropy_quantiles": self.durian_entropy_quantiles,
            "num_confidence_buckets": self.durian_num_confidence_buckets,
            "eps": self.durian_eps,
        }
