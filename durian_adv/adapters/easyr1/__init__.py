"""EasyR1: ``python -m durian_adv.adapters.easyr1 ...`` in place of ``python -m verl.trainer.main ...``."""
