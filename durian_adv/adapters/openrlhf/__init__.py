"""OpenRLHF: ``setup``, the hook that puts Durian's advantages into the processes that Ray starts."""

from durian_adv.adapters.openrlhf.hook import setup

__all__ = ["setup"]
