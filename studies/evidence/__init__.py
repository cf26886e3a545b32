"""Does the choice of a group normalization matter, where, and by how much? The measurements behind docs/evidence.md.

Read in this order: suite, arms, sampling, loop, conditions, runner, records, then mechanism, comparison, tables, page.
"""
