"""Benchmarks of durian-adv; each folder or script is run as a module from the repository root."""
