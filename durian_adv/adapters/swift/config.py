"""ms-swift: the arguments of GRPO, with the options of Durian from variables of the environment."""

import json
import os
from collections.abc import Mapping
from typing import Any

from swift.rlhf_trainers import GRPOConfig, GRPOTrainer

from durian_adv._src import checks
from durian_adv._src.errors import ArgumentError
from durian_adv._src.options import OPTIONS, of_run
from durian_adv.adapters.swift import require_fit
from durian_adv.data.scoring import towers

_OWN = ("features", "rollout_log")  # options of this adapter beside those of the estimator: text
_EXPECTED = (
    ("advantage_estimator", "grpo", "as durian_estimator chooses the estimator"),
    ("scale_rewards", "group", "as Durian scales rewards by durian_weights; loss_type 'real' sets 'none'"),
)


class DurianGRPOConfig(GRPOConfig):
    """ms-swift's arguments of GRPO, and from the environment the options of Durian, as attributes ``durian_...``."""

    def __post_init__(self) -> None:
        require_fit(GRPOTrainer)
        super().__post_init__()
        given = {"eps": 1e-4, **options_of(os.environ)}  # ms-swift's own, for weights [1, 0, 0]; the paper adds 1e-6
        self.durian_features = given.pop("features", "patches")
        checks.choice("durian_features", self.durian_features, towers.FEATURES)
        self.durian_options, self.durian_rollout_log = of_run(given, "durian_")
        for name, expected, why in _EXPECTED:
            if (got := getattr(self, name)) != expected:
                raise ArgumentError(name, f"{expected!r}, {why}", repr(got))


def options_of(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the options from ``DURIAN_WINDOW`` and so on; raise an ``ArgumentError`` for what is none."""
    known = {f"DURIAN_{name.upper()}": name for name in (*OPTIONS, *_OWN)}
    values = {}
    for variable in (name for name in environment if name.startswith("DURIAN_")):
        if variable not in known:
            raise ArgumentError(variable, f"one of {', '.join(known)}", "an unknown variable")
        name, text = known[variable], environment[variable]
        try:
            values[name] = text if name in _OWN or OPTIONS[name].kind is str else json.loads(text)
        except json.JSONDecodeError:
            raise ArgumentError(variable, "a number, or numbers as [0.3, 0, 0.7]", repr(text)) from None
    return values
