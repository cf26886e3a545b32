"""The estimators that a report compares, all from the library, and what each is worth on a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from durian_adv import DurianComponents
from durian_adv.baselines import batch_std_advantage, dr_grpo_advantage
from durian_adv.data.logs.steps import Step
from durian_adv.worth import Worth, predicted_worth

Components = Callable[..., DurianComponents]  # of a step, and options in the place of those that were chosen

KEPT, DROPPED, BY_CATEGORY = "Durian (groups without signal kept)", "Durian (dropped)", "std per category"
METHODS = ("GRPO", "Dr. GRPO", "batch std", "Durian")  # compared prompt by prompt, Durian with the chosen options
COMPARED = ("GRPO", "batch std", "Dr. GRPO", KEPT, DROPPED, BY_CATEGORY)
_CATEGORY_ALONE = (0.0, 0.0, 0.0, 1.0)


def advantages(
    step: Step, parts: DurianComponents, components: Components, *, eps: float, correction: int
) -> dict[str, Tensor]:
    """Return the advantages ``(N,)`` of each estimator that has its inputs in this step, those of ``METHODS`` first.

    Args:
        step: one step of a log.
        parts: Durian's components of it, with the options that were chosen.
        components: of a step.
        eps: of batch std.
        correction: of batch std.
    """
    rewards, index = step.rewards, step.prompt_index
    found = {
        "GRPO": parts.grpo,
        "Dr. GRPO": dr_grpo_advantage(rewards, prompt_index=index),
        "batch std": batch_std_advantage(rewards, prompt_index=index, eps=eps, correction=correction),
        "Durian": parts.advantages,
    }
    if step.visual_entropy is not None or step.confidence is not None:
        found[KEPT] = components(step, no_signal="keep").advantages
        found[DROPPED] = components(step, no_signal="drop").advantages
    if step.category is not None:
        found[BY_CATEGORY] = by_category(step, components).advantages
    return found


def by_category(step: Step, components: Components) -> DurianComponents:
    """Return the components of a step that has categories, of which that of the category alone has a weight."""
    return components(step, weights=_CATEGORY_ALONE)


def worth(step: Step, compared: Mapping[str, Tensor], success_threshold: float) -> dict[str, Worth]:
    """Return what each estimator is worth, where what counts is that a rollout is correct."""
    return predicted_worth(
        step.rewards,
        {name: values for name, values in compared.items() if name in COMPARED},
        correctness=step.rewards > success_threshold,
        category=step.category,
        prompt_index=step.prompt_index,
    )
