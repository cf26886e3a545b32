"""Subcommands of ``durian-adv``, a file each: ``add`` declares the options, ``run`` does the work."""
