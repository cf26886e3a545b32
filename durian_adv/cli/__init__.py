"""The command ``durian-adv``: ``main``, and one file for each subcommand."""

from durian_adv.cli.main import main

__all__ = ["main"]
