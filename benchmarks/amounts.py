"""How measured amounts, ratios and targets are written on pages and in pictures."""


def amount(value: float, unit: str) -> str:
    """Write a time in us or a number of bytes in the unit that suits it."""
    names = {"us": ("µs", "ms", "s"), "bytes": ("B", "kB", "MB")}.get(unit)
    if names is None:
        return f"{short(value)} {unit}"
    power = 0 if value < 1e3 else 1 if value < 1e6 else 2
    return f"{short(value / 1e3**power)} {names[power]}"


def short(value: float) -> str:
    """Write a number with three digits, never as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.6f}"


def limit(target: str) -> str:
    """Write a target as it is read."""
    relation, bound = target.split()
    return f"{'at most' if relation == '<=' else 'at least'} {bound}"
