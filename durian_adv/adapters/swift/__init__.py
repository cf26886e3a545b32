"""ms-swift: ``--external_plugins "$(python -m durian_adv.adapters.swift)"`` puts Durian's advantages into its GRPO."""

from importlib.metadata import version

from durian_adv.adapters._fit import misfits

TESTED = "4.6.0"
# What is used of GRPOTrainer beyond its public interface: methods with the parameters they are called with, attributes
_METHODS = {
    "_add_prompt_id_to_inputs": ("samples",),
    "_compute_advantages": ("samples", "rewards_per_func", "batch_encoded_inputs"),
    "_get_per_token_logps_and_entropies": ("model", "model_inputs", "grpo_batch"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_prepare_batch_inputs": ("samples",),
    "_save_checkpoint": ("model", "trial"),
    "split_by_mini_batches": ("samples",),
}
_ATTRIBUTES = ("dynamic_num_samples", "kl_in_reward", "overlong_filter", "reward_weights", "template", "_metrics")


def require_fit(trainer: object) -> None:
    """Raise a RuntimeError for an ms-swift whose trainer, the class or an object of it, lacks what is used here."""
    names = _METHODS if isinstance(trainer, type) else dict.fromkeys(_ATTRIBUTES)
    for what in misfits((trainer, name, given) for name, given in names.items()):
        raise misfit(what)


def misfit(what: str) -> RuntimeError:
    """Return the error for a version of ms-swift that differs from the one that was tested."""
    return RuntimeError(f"ms-swift {version('ms-swift')} does not fit Durian's plugin, tested with {TESTED}: {what}")
