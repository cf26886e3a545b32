"""``python -m durian_adv.adapters.easyr1``: EasyR1's main with the estimator ``durian``."""

from durian_adv.adapters.easyr1.trainer import main

main()
