"""What can be said of the arms without measuring: how far two normalizations can be apart at all."""

import math


def std_range(group_size: int) -> tuple[float, float]:
    r"""Return the least and the largest population std of a group of binary rewards that has signal.

    With k of G right the variance is (k/G)(1 - k/G): least at k = 1, largest at k = G/2 (or next to it, G odd).

    >>> std_range(8)
    (0.33071891388307384, 0.5)
    """
    lowest = math.sqrt(group_size - 1) / group_size
    half = group_size // 2
    return lowest, math.sqrt(half * (group_size - half)) / group_size


def cosine_bound(lowest: float, highest: float) -> float:
    r"""Return the least cosine of advantages A and f A, where each prompt's factor f lies in [lowest, highest].

    .. math:: \cos \ge \frac{2 \sqrt{m M}}{m + M}

    >>> round(cosine_bound(*std_range(8)), 4), cosine_bound(*std_range(2))
    (0.979, 1.0)
    """
    return 2 * math.sqrt(lowest * highest) / (lowest + highest)


def binary_bound(group_size: int) -> float:
    """Return the least cosine of GRPO and Dr. GRPO on binary rewards.

    >>> [round(binary_bound(size), 3) for size in (2, 4, 8, 16, 32)]
    [1.0, 0.997, 0.979, 0.938, 0.875]
    """
    return cosine_bound(*std_range(group_size))


def format_bound(group_size: int, format_weight: float = 0.1) -> float:
    """Return the same for rewards of accuracy and format, where a group may differ in format alone.

    >>> round(format_bound(8), 3)
    0.482
    """
    lowest, highest = std_range(group_size)
    return cosine_bound(min(format_weight, 1 - format_weight) * lowest, highest)
