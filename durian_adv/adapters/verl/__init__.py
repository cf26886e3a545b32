"""verl: the advantage estimator ``durian``. Importing this package installs it.

verl swallows the errors of its plugins. Then the name ``durian`` would be unknown to it, after the first rollouts, and
nobody would learn why; so an estimator that raises the error takes its place.
"""

import contextlib
import logging
from typing import Any, NoReturn

try:
    from durian_adv.adapters.verl.estimator import durian_estimator
except Exception as error:
    _problem = error  # the name of an except clause does not outlive it
    logging.getLogger(__name__).exception("durian_adv did not load: algorithm.adv_estimator=durian will fail")

    def _absent(**_: Any) -> NoReturn:
        raise RuntimeError("the estimator durian of durian_adv did not load") from _problem

    with contextlib.suppress(ImportError):  # without verl there is nobody to tell
        from verl.trainer.ppo import core_algos

        core_algos.register_adv_est("durian")(_absent)
    raise

__all__ = ["durian_estimator"]
