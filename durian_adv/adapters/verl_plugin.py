"""What verl loads by its entry points ``verl.plugins``: the estimator, or one that tells why it is not there.

verl swallows the errors of its plugins. Then the name ``durian`` would be unknown to it, after the first rollouts, and
nobody would learn why.
"""

import logging
from typing import Any, NoReturn

try:
    from durian_adv.adapters import verl as _verl  # noqa: F401  # the import installs it
except Exception as error:
    _problem = error  # the name of an except clause does not outlive it
    logging.getLogger(__name__).exception("durian_adv did not load: algorithm.adv_estimator=durian will fail")

    from verl.trainer.ppo import core_algos

    def _absent(**_: Any) -> NoReturn:
        raise RuntimeError("the estimator durian of durian_adv did not load") from _problem

    core_algos.register_adv_est("durian")(_absent)
