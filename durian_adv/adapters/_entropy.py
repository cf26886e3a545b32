"""One error for images whose entropy nobody has computed."""

from __future__ import annotations

from torch import Tensor

from durian_adv._src.errors import ArgumentError


def require_entropy(entropy: Tensor | None, weight: str) -> None:
    """Refuse a batch with images of which no prompt has an entropy; ``weight`` is the option that asks for it.

    Without images an estimator leaves the component out; with images that would be another method than was asked for.

    Raises:
        ArgumentError: no row has a number.
    """
    if entropy is None or bool(entropy.isnan().all()):
        raise ArgumentError(
            "visual_entropy",
            f"a number for prompts with images, for {weight} > 0",
            f"none. Compute it beforehand (durian-adv entropy), or set {weight} to 0",
        )
