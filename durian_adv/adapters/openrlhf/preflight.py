"""OpenRLHF: what a run would miss, from the options of ``openrlhf.cli.train_ppo_ray`` and the job's environment."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from durian_adv.adapters import _ray
from durian_adv.adapters._batch import prompts_a_bucket
from durian_adv.adapters._preflight import Check
from durian_adv.adapters.openrlhf import hook
from durian_adv.adapters.openrlhf.hook import OpenRLHFOptions


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Yield what is found about a run with these options.

    Besides those of the run: ``--runtime-env FILE`` or ``--runtime-env-json TEXT``, as ``ray job submit`` takes them,
    and ``--no-ray``, which leaves Ray's workers out.
    """
    # a whole line of ray job submit, too: after its -- stand the program's words, then the options of the run
    given, _ = _parser().parse_known_args([word for word in arguments if word != "--"])
    environment = _environment(given)
    yield _openrlhf()
    given_hook = environment.get("worker_process_setup_hook")
    state: Any = "ok" if given_hook == hook.HOOK else "problem"
    yield Check(state, "hook", f"worker_process_setup_hook is {given_hook}, for Durian it must be {hook.HOOK}")
    estimator = getattr(given, "algo.advantage.estimator")
    state = "ok" if estimator == hook.ESTIMATOR else "problem"
    yield Check(state, "estimator", f"{estimator}, for Durian it must be {hook.ESTIMATOR}")
    rollouts = getattr(given, "rollout.n_samples_per_prompt")
    state = "ok" if rollouts > 1 else "problem"
    yield Check(state, "rollouts", f"rollout.n_samples_per_prompt is {rollouts}, it must be at least 2")
    try:
        options = hook.options_of(environment.get("env_vars") or {})
    except (TypeError, ValueError, OSError) as error:
        yield Check("problem", "options", str(error))
        options = OpenRLHFOptions()
    else:
        yield Check("ok", "options", repr(options))
    images = getattr(given, "data.max_images_per_prompt") > 0
    yield from _entropy(options, images, getattr(given, "actor.freeze_visual_encoder"))
    text, enough = prompts_a_bucket(getattr(given, "rollout.batch_size"), options, images)
    yield Check("ok" if enough else "warning", "prompts", text)
    if not given.no_ray:
        yield from _workers(environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="durian-adv preflight openrlhf", allow_abbrev=False)
    parser.add_argument("--runtime-env", type=Path)
    parser.add_argument("--runtime-env-json")
    parser.add_argument("--no-ray", action="store_true")
    # of OpenRLHF, with its defaults
    parser.add_argument("--algo.advantage.estimator", default="gae")
    parser.add_argument("--rollout.batch_size", type=int, default=1024)
    parser.add_argument("--rollout.n_samples_per_prompt", type=int, default=1)
    parser.add_argument("--data.max_images_per_prompt", type=int, default=0)
    parser.add_argument("--actor.freeze_visual_encoder", action="store_true")
    return parser


def _environment(given: argparse.Namespace) -> dict[str, Any]:
    """Read the job's runtime environment; YAML takes JSON, too."""
    text = given.runtime_env_json if given.runtime_env is None else given.runtime_env.read_text(encoding="utf-8")
    try:
        found = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise ValueError(f"--runtime-env: expected YAML or JSON, got {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--runtime-env: expected a mapping, got {type(found).__name__}")
    if not isinstance(found.get("env_vars") or {}, dict):
        raise ValueError(f"--runtime-env: expected a mapping for env_vars, got {type(found['env_vars']).__name__}")
    return found


def _openrlhf() -> Check:
    """Tell whether this OpenRLHF has what is used of it."""
    try:
        from durian_adv.adapters.openrlhf import maker

        maker.check_fit()
    except ImportError as error:
        return Check("warning", "OpenRLHF", f"it cannot be imported here: {error}")
    except (AttributeError, RuntimeError) as error:
        return Check("problem", "OpenRLHF", str(error))
    return Check("ok", "OpenRLHF", f"has what is used of it; tested with {hook.TESTED}")


def _entropy(options: OpenRLHFOptions, images: bool, frozen: bool) -> Iterator[Check]:
    """Tell where the visual entropy comes from, and whether it is that of the model."""
    if options.weights[1] == 0:
        yield Check("ok", "entropy", "not needed, the perceptual component has weight 0")
        return
    if not images:
        yield Check("ok", "entropy", "no images (data.max_images_per_prompt is 0): the other components remain")
        return
    if options.entropy_table is None:
        yield Check("ok", "entropy", "computed in the actor, unless the reward function returns visual_entropy")
        return
    try:
        table = hook.read_table(options.entropy_table)
    except (TypeError, ValueError, OSError) as error:
        yield Check("problem", "entropy", str(error))
        return
    known = sum(not math.isnan(value) for value in table.values())
    if not known:
        yield Check("problem", "entropy", f"{options.entropy_table} has no entropy of any of its {len(table)} images")
        return
    yield Check("ok", "entropy", f"{options.entropy_table} has {known} of {len(table)} images")
    if not frozen:
        text = (
            "trained, so the table is that of the model before training; --actor.freeze_visual_encoder makes it exact"
        )
        yield Check("warning", "vision tower", text)


def _workers(environment: dict[str, Any]) -> Iterator[Check]:
    """Tell whether the hook runs in a worker on each node of the Ray that OpenRLHF would use."""
    yield from _ray.asked_on_every_node(_hook_ran, runtime_env=environment)


def _hook_ran() -> tuple[bool, str]:
    """Look for the hook in this process, a worker's."""
    ran = "durian_adv.adapters.openrlhf.hook" in sys.modules
    return ran, f"the hook {'ran' if ran else 'did not run'}"
