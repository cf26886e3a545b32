"""What verl loads by its entry points ``verl.plugins``; nothing else imports it, so that it tells who loaded us."""

import durian_adv.adapters.verl  # noqa: F401  # installs the estimator
