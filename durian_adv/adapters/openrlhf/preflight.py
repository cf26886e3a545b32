"""OpenRLHF: what a run would miss, from the options of ``openrlhf.cli.train_ppo_ray`` and the job's environment."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from durian_adv.adapters import _ray
from durian_adv.adapters._preflight import Check, described, log_folder, prompts_check, verdict
from durian_adv.adapters.openrlhf import settings
from durian_adv.estimator import AdvantageEstimator


def checks(arguments: Sequence[str]) -> Iterator[Check]:
    """Yield what is found about a run with these options.

    Besides those of the run: ``--runtime-env FILE`` or ``--runtime-env-json TEXT``, as ``ray job submit`` takes them,
    and ``--no-ray``, which leaves Ray's workers out.
    """
    # a whole line of ray job submit, too: after its -- stand the program's words, then the options of the run
    given, _ = _parser().parse_known_args([word for word in arguments if word != "--"])
    environment = _environment(given)
    yield _openrlhf()
    found = environment.get("worker_process_setup_hook")
    yield verdict(
        found == settings.HOOK, "hook", f"worker_process_setup_hook is {found}, for Durian it must be {settings.HOOK}"
    )
    name = getattr(given, "algo.advantage.estimator")
    yield verdict(name == settings.ESTIMATOR, "estimator", f"{name}, for Durian it must be {settings.ESTIMATOR}")
    rollouts = getattr(given, "rollout.n_samples_per_prompt")
    text = f"rollout.n_samples_per_prompt is {rollouts}, it must be at least 2"
    yield verdict(rollouts > 1, "rollouts", text)
    chosen, problem = settings.options_of({}), None
    try:
        chosen = settings.options_of(environment.get("env_vars") or {})
    except (TypeError, ValueError) as error:
        problem = str(error)
    estimator = AdvantageEstimator(**chosen.options)
    yield verdict(problem is None, "options", problem or described(estimator))
    if chosen.rollout_log is not None:
        yield log_folder(f"{settings.OPTIONS}.rollout_log", chosen.rollout_log)
    images = getattr(given, "data.max_images_per_prompt") > 0
    yield from _entropy(chosen, estimator, images, getattr(given, "actor.freeze_visual_encoder"))
    if estimator.needs("category"):
        yield Check("ok", "category", "a number that the reward function returns in extra_logs, or the run stops")
    yield prompts_check(getattr(given, "rollout.batch_size"), estimator, images)
    if not given.no_ray:
        yield from _workers(environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="durian-adv preflight openrlhf", conflict_handler="resolve")
    # those of OpenRLHF first: it takes an abbreviation that no two of them begin with
    with suppress(ImportError):  # reported by _openrlhf
        for name in set(re.findall(r'add_argument\(\s*"(--[^"]+)"', _program())):
            parser.add_argument(name, nargs="*")
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
        version = importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        return Check("problem", "OpenRLHF", "not installed here; ask in the environment of the run")
    try:
        _check_arguments()  # first: they can be read where OpenRLHF cannot be imported
        from durian_adv.adapters.openrlhf import maker

        maker.check_fit()
    except ImportError as error:
        return _not_imported(error, version)
    except (AttributeError, RuntimeError) as error:
        return Check("problem", "OpenRLHF", str(error))
    return Check("ok", "OpenRLHF", f"{version} has what is used of it; tested with {settings.TESTED}")


def _not_imported(error: ImportError, version: str) -> Check:
    """Tell why: a module that OpenRLHF has not, or a package that need not be on a machine without a GPU."""
    module = error.name or ""
    if module.partition(".")[0] == "openrlhf":
        return Check("problem", "OpenRLHF", str(settings.misfit(f"{type(error).__name__}: {error}")))
    text = f"{version} cannot be imported here: {error}"
    if torch.cuda.is_available() or module.partition(".")[0] not in _OF_A_GPU:
        return Check("problem", "OpenRLHF", text)
    text = f"{text}. This machine has no GPU; whether OpenRLHF fits is known where the run has its workers"
    return Check("warning", "OpenRLHF", text)


# packages of OpenRLHF that do not install without a GPU
_OF_A_GPU = ("vllm", "flash_attn", "deepspeed")


def _check_arguments() -> None:
    """Raise RuntimeError if OpenRLHF's program has flat arguments, as it had before 0.10.2."""
    if '"--rollout.n_samples_per_prompt"' not in _program():
        raise settings.misfit("no rollout.n_samples_per_prompt among its arguments")


def _program() -> str:
    """Return the source of OpenRLHF's program, "" for one without."""
    program = importlib.util.find_spec("openrlhf.cli.train_ppo_ray")
    return "" if program is None or program.origin is None else Path(program.origin).read_text(encoding="utf-8")


def _entropy(chosen: settings.Settings, estimator: AdvantageEstimator, images: bool, frozen: bool) -> Iterator[Check]:
    """Tell where the visual entropy comes from, and whether it is that of the model."""
    table = None
    if chosen.entropy_table is not None:
        try:
            table = settings.read_table(chosen.entropy_table)
        except (TypeError, ValueError) as error:  # which stops a run that does not use it, too
            yield Check("problem", "entropy", str(error))
            return
    if not estimator.needs("visual_entropy"):
        yield Check("ok", "entropy", "not needed, the perceptual component has weight 0")
        return
    if not images:
        others = estimator.needs("confidence") or estimator.needs("category")
        remains = "the other components remain" if others else "a run stops unless its reward function returns some"
        text = f"no images (data.max_images_per_prompt is 0): {remains}"
        yield verdict(others, "entropy", text, otherwise="warning")
        return
    if table is None:
        yield Check("ok", "entropy", "computed in the actor, unless the reward function returns visual_entropy")
        return
    known = sum(not math.isnan(value) for value in table.values())
    if not known:
        yield Check("problem", "entropy", f"{chosen.entropy_table} has no entropy of any of its {len(table)} images")
        return
    yield Check("ok", "entropy", f"{chosen.entropy_table} has {known} of {len(table)} images")
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
