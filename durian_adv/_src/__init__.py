"""Internals: the formulas and their numerics. Imports nothing of the package outside this folder."""
