"""verl: the advantage estimator ``durian``, beside verl's own.

verl imports this module by itself (its entry points ``verl.plugins``), in every process that imports verl, before its
own trainers exist. So nothing is imported from verl here; each of its modules is changed right after its own import.
With any other estimator a changed function makes one comparison and calls verl's own.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import wrapt
from torch import Tensor

from durian_adv._src.errors import ArgumentError
from durian_adv._src.options import ROLLOUT_LOG, of_run, require_mapping
from durian_adv.adapters._entropy import require_entropy
from durian_adv.adapters._fit import misfits, resolved
from durian_adv.adapters._preflight import UNUSED, described, open_log, prompts_check
from durian_adv.data.logs.rows import label
from durian_adv.data.logs.writer import PROMPT_ID, RolloutLog
from durian_adv.estimator import AdvantageEstimator

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

NAME = "durian"
OPTIONS = "algorithm.durian"
LOG = f"{OPTIONS}.{ROLLOUT_LOG.name}"
SYNC = "verl.trainer.main_ppo_sync"  # of verl 0.8, which sets the option by which it is refused itself
OLDEST_TESTED, NEWEST_TESTED = "0.6.1", "0.9.1"
TESTED = f"{OLDEST_TESTED} to {NEWEST_TESTED}"

Column = Callable[[str], Iterable[Any] | None]

# where a batch may carry the visual entropy, the first that is there wins: the dataset's column, its extra_info, the
# reward function's return in verl's v1 trainers (its other trainers have that as a column)
_ENTROPY = (
    ("visual_entropy",),
    ("extra_info", "visual_entropy"),
    ("extra_fields", "reward_extra_info", "visual_entropy"),
)


# the dataset's columns of kinds of prompts, of which the first that is there counts
CATEGORY = ("category", "data_source")


@dataclasses.dataclass
class Rows:
    """What a batch holds beyond what verl passes to an estimator; a row is a response."""

    tensors: Mapping[str, Tensor]
    column: Column  # by name, a value per row; None where the batch has no such column
    valid: Tensor | None = None  # False for padding
    last: Tensor | None = None  # the row of the last output of the rollout that a row belongs to
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


_rows: contextvars.ContextVar[Rows | None] = contextvars.ContextVar("durian_rows", default=None)
_misfits: list[str] = []


def durian_estimator(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    config: Any = None,
    index: np.ndarray | None = None,
    batch: Mapping[str, Tensor] | None = None,
    non_tensor_batch: Mapping[str, np.ndarray] | None = None,
    **_: Any,  # what verl passes when a batch has it, such as reward_baselines
) -> tuple[Tensor, Tensor]:
    """Return Durian's advantages, twice, as verl's outcome estimators do: ``(N, T)``, 0 outside the response.

    The reward of a response is the sum of its tokens' rewards. Its confidence comes from ``old_log_probs``.

    Args:
        token_level_rewards: ``(N, T)``; a NaN among them makes the response invalid.
        response_mask: 1 for the tokens that the policy sampled, ``(N, T)``.
        config: verl's ``algorithm``, with the options under ``durian``.
        index: the ``uid`` of each response's prompt, ``(N,)``.
        batch: the tensors of the batch. Left out, they are what the trainer was given.
        non_tensor_batch: its other columns.

    Raises:
        RuntimeError: this version of verl does not fit.
        ValueError: an option, or something that the batch should have and has not.
    """
    _refuse_misfits()
    _refuse_queue(_whole(config))  # main_ppo_sync travels to its workers by value, past every other check of ours
    if index is None:
        raise ArgumentError("index", "the uid of each response's prompt", "None")
    estimator = estimator_of(config)
    rows = _rows.get()
    if rows is None:
        if non_tensor_batch is None and (estimator.needs("visual_entropy") or estimator.needs("category")):
            raise ArgumentError("non_tensor_batch", f"the batch's columns, for {OPTIONS}.weights", "None")
        rows = Rows(batch if batch is not None else {}, (non_tensor_batch or {}).get)
    rewards = token_level_rewards.sum(-1)
    if rows.last is not None:  # the reward of a rollout is that of its last output
        rewards = rewards[rows.last]
    log = log_of(config)
    category = _category(rows) if estimator.needs("category") else None
    advantages = estimator(
        rewards,
        index,
        mask=response_mask,
        rollouts=rows.last,
        valid=rows.valid,
        logprobs=_logprobs(rows, estimator, log is not None),
        visual_entropy=_entropy(rows, len(rewards), estimator, log is not None),
        category=category,
    )
    if log is not None:
        log.write(
            _step(),
            estimator.record,
            prompts=_known(rows.column(PROMPT_ID)),
            texts=_texts(rows),
            category=_kinds(rows) if category is None else category,
            exists=rows.valid,
        )
    rows.metrics.update(estimator.metrics)
    by_token = torch.where(response_mask != 0, advantages[:, None], 0)  # faster than a product with int64, verl's mask
    return by_token, by_token


def _logprobs(rows: Rows, estimator: AdvantageEstimator, logged: bool) -> Tensor | None:
    if estimator.needs("confidence") or logged:
        if "old_log_probs" in rows.tensors.keys():  # noqa: SIM118  # a TensorDict
            return rows.tensors["old_log_probs"]
        if estimator.needs("confidence"):
            raise ArgumentError("old_log_probs", f"a field of the batch, for {OPTIONS}.weights[2] > 0", "none")
    return None


def _entropy(rows: Rows, count: int, estimator: AdvantageEstimator, logged: bool) -> Tensor | None:
    """Return the entropy of each row, NaN where unknown; images of which no row has one are refused."""
    if not estimator.needs("visual_entropy"):
        return find_entropy(rows.column) if logged else None
    entropy = find_entropy(rows.column)
    if entropy is None and has_images(rows.column):  # in a queue these are pixels: not to be fetched for nothing
        require_entropy(entropy, f"{OPTIONS}.weights[1]")
    return torch.full((count,), torch.nan) if entropy is None else entropy


def _category(rows: Rows) -> list[Any]:
    found = _kinds(rows)
    if found is None:
        raise ArgumentError("category", f"a column of the dataset, for {OPTIONS}.weights[3] > 0", "none")
    return found


def _kinds(rows: Rows) -> list[Any] | None:
    """Return the kind of each row's prompt: the dataset's column ``category``, else verl's ``data_source``."""
    return next((found for name in CATEGORY if (found := _known(rows.column(name))) is not None), None)


def _known(values: Iterable[Any] | None) -> list[Any] | None:
    """Return a column as a list; None where no row has a value."""
    found = [] if values is None else list(values)
    return found if any(value is not None for value in found) else None


def _texts(rows: Rows) -> list[str | None] | None:
    """Return what to call the prompts of the log; messages with images in them would be fetched with these."""
    texts: list[str | None] = []
    found = rows.column("raw_prompt")
    for messages in () if found is None else found:
        if messages is not None and any(not isinstance(message.get("content"), str) for message in messages):
            return None
        texts.append(None if messages is None else str(label(list(messages))))
    return texts or None


def _step() -> int:
    """Return the number of the trainer's step."""
    step = getattr(None if _trainer is None else _trainer(), "global_steps", None)
    if not isinstance(step, int):
        expected = "a trainer of verl's that was started in this process, as that one numbers the steps"
        raise ArgumentError(LOG, expected, "none: leave the option out")
    return step


def find_entropy(column: Column) -> Tensor | None:
    """Return the visual entropy of each row, NaN for one without, ``(N,)``; None where no row has any.

    Raises:
        ValueError: an entropy that is not a number.
    """
    for name, *path in _ENTROPY:
        values = column(name)
        if values is None:
            continue
        values = values if isinstance(values, np.ndarray) else list(values)
        if path:
            values = [_within(value, path) for value in values]
        found = _numbers(values, ".".join([name, *path]))
        if not bool(found.isnan().all()):
            return found
    return None


# a processor's inputs without anything to see: types of tokens, and those of sound; what is not known counts as images
_UNSEEN = re.compile("token_type_ids$|audio|^input_features|^feature_attention_mask$")


def has_images(column: Column) -> bool:
    """Tell whether a row has images or videos."""
    inputs = column("multi_modal_inputs")
    return inputs is not None and any(not _UNSEEN.search(key) for row in inputs if row for key in row)


def options_of(algorithm: Any) -> tuple[dict[str, Any], str | None]:
    """Read the options of the estimator, and the folder of the rollout log, from verl's ``algorithm``.

    Raises:
        ArgumentError: an option that does not exist, or a value that does not fit, by its full name.
    """
    given = algorithm.get(NAME) if algorithm is not None else None
    if isinstance(given, Mapping) and not isinstance(given, dict):
        from omegaconf import OmegaConf

        given = OmegaConf.to_container(given, resolve=True)
    return of_run(require_mapping(given, OPTIONS), f"{OPTIONS}.")


# By their options, the estimators of this process, which has one trainer: a window lives as long as it does.
_estimators: dict[str, AdvantageEstimator] = {}
_logs: dict[str, RolloutLog] = {}  # by their folders
_trainer: Callable[[], Any] | None = None  # a weak reference


def estimator_of(algorithm: Any) -> AdvantageEstimator:
    """Return the estimator of verl's ``algorithm``, with what it remembers of earlier steps."""
    options, _ = options_of(algorithm)
    return _estimators.setdefault(repr(options), AdvantageEstimator(**options))


def log_of(algorithm: Any) -> RolloutLog | None:
    """Return the rollout log of verl's ``algorithm``, None for none."""
    _, folder = options_of(algorithm)
    if folder is not None and folder not in _logs:
        _logs[folder] = open_log(LOG, folder)
    return None if folder is None else _logs[folder]


def check_config(config: Any) -> AdvantageEstimator:
    """Check verl's whole configuration, when a trainer starts; return an estimator of its options.

    Raises:
        RuntimeError: this version of verl does not fit.
        ArgumentError: an option that does not exist, does not fit, or contradicts Durian.
    """
    _refuse_misfits()
    if not config.algorithm.get("norm_adv_by_std_in_grpo", True):
        raise ArgumentError("algorithm.norm_adv_by_std_in_grpo", "true, as Durian divides by a std itself", "false")
    if (count := config.actor_rollout_ref.rollout.n) < 2:
        raise ArgumentError("actor_rollout_ref.rollout.n", "at least 2 responses per prompt", count)
    _refuse_queue(config)
    options, folder = options_of(config.algorithm)
    if folder is not None and trainer_of(config) == "fully_async":
        expected = "none with the fully asynchronous trainer, which does not number its steps where it computes them"
        raise ArgumentError(LOG, expected, folder)
    return AdvantageEstimator(**options)


def _refuse_queue(config: Any) -> None:
    queue = config.get("transfer_queue")
    if trainer_of(config) == "v0" and queue is not None and queue.get("enable", False) and exists(SYNC):
        raise ArgumentError("transfer_queue.enable", f"false, as {refusal_of_sync()}", "true")


def exists(module: str) -> bool:
    """Tell whether a module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its package there
        return False


def refusal_of_sync() -> str:
    """Say why verl's main_ppo_sync is refused, and what to use."""
    version = importlib.metadata.version("verl")
    remedy = f"use verl.trainer.main_ppo, or verl {NEWEST_TESTED}"
    return f"with verl {version} (main_ppo_sync) padding would count as prompts: {remedy}"


def _whole(algorithm: Any) -> Any:
    """Return the configuration that verl's ``algorithm`` is a part of, an empty one where it stands alone."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError

    with contextlib.suppress(ConfigKeyError):  # it stands alone
        return OmegaConf.select(algorithm, "..") if OmegaConf.is_config(algorithm) else {}
    return {}


def trainer_of(config: Any) -> str:
    """Name the trainer that a configuration is of; the separate ones have parts of their own in it."""
    if "async_training" in config:
        return "fully_async"
    if "rollout" in config:
        return "one_step_off"
    trainer = config.get("trainer")  # verl before 0.9 has v0 alone
    return "v1" if trainer is not None and trainer.get("use_v1", False) else "v0"


def prompts_of(config: Any) -> int | None:
    """Return how many prompts an advantage step has, None if the configuration does not say."""
    trainer = trainer_of(config)
    if trainer == "fully_async":  # whose train_batch_size is 0
        return int(config.actor_rollout_ref.actor.ppo_mini_batch_size * config.async_training.require_batches)
    prompts = config.data.train_batch_size
    if not isinstance(prompts, int):
        return None
    mode = config.trainer.v1.get(config.trainer.v1.trainer_mode) or {} if trainer == "v1" else {}
    return prompts // int(mode.get("parameter_sync_step", 1))


def last_outputs(keys: Sequence[str]) -> Tensor:
    """Return the row of the last output of the rollout that each row belongs to, ``(N,)``.

    Agent loops of verl's v1 trainers may make several rows of one rollout, with keys ``{uid}_{rollout}_{output}``.
    """
    parts = [key.rpartition("_") for key in keys]
    _, rollout = np.unique([part[0] for part in parts], return_inverse=True)
    order = np.argsort([int(part[2]) for part in parts], kind="stable")
    last = np.empty(rollout.max(initial=-1) + 1, dtype=np.int64)
    last[rollout[order]] = order  # of equal indices the one written last stays
    return torch.from_numpy(last[rollout])


def _within(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _numbers(values: Sequence[Any] | np.ndarray, name: str) -> Tensor:
    if {bool, np.bool_}.isdisjoint(map(type, values)):
        try:
            found = np.asarray(values, dtype=np.float64)  # None is NaN
        except (TypeError, ValueError):
            pass  # told below, by its value
        else:
            if found.ndim == 1:
                return torch.from_numpy(found)
    return torch.tensor([_number(value, name) for value in values], dtype=torch.float64)


def _number(value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool | np.bool_):
            return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        pass
    raise ArgumentError(name, "a number or None", f"{value!r}")


# ----- changes to verl, each a function of the original -----


def _with_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compute_advantage(data: Any, adv_estimator: Any, *args: Any, **kwargs: Any) -> Any:
        if adv_estimator != NAME:
            return original(data, adv_estimator, *args, **kwargs)
        rows = _rows.get()
        with _given(Rows(data.batch, data.non_tensor_batch.get) if rows is None else rows) as rows:
            rows.tensors = data.batch
            out = original(data, adv_estimator, *args, **kwargs)
        out.durian_metrics = rows.metrics  # until verl asks for the metrics of this batch
        return out

    return compute_advantage


def _with_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compute_data_metrics(batch: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = original(batch, *args, **kwargs)
        if hasattr(batch, "durian_metrics"):
            metrics.update(batch.durian_metrics)
        return metrics

    return compute_data_metrics


def _with_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def _compute_advantage(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        if self.config.algorithm.adv_estimator != NAME:
            return original(self, batch, metrics)

        import transfer_queue

        client = transfer_queue.get_client()
        places: list[int] = []  # of the rows in the queue

        def column(name: str) -> Iterable[Any] | None:
            # the queue returns a field only if all of the rows that it is asked for have it
            known, there = client.get_production_status([name], batch.partition_id)
            if known is None or there is None:
                return None
            if not places:
                places.extend(client.kv_retrieve_meta(batch.keys, batch.partition_id).global_indexes)
            having = set(known[there[:, 0] == 1].tolist())
            has = [place in having for place in places]
            return values(name, has) if any(has) else None

        def values(name: str, has: Sequence[bool]) -> Iterator[Any]:
            found = fetched(name, list(itertools.compress(batch.keys, has)))
            for there in has:
                yield next(found) if there else None

        def fetched(name: str, keys: list[str]) -> Iterator[Any]:
            start, count = 0, 1  # more and more, so that whoever looks for one row with images does not fetch them all
            while start < len(keys):
                some = keys[start : start + count]
                found = transfer_queue.kv_batch_get(some, batch.partition_id, select_fields=[name])[name]
                yield from found.tolist() if isinstance(found, Tensor) else found
                start, count = start + count, 16 * count

        last = last_outputs(batch.keys)
        valid = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        alone = bool((last == torch.arange(len(last))).all())
        with _given(Rows({}, column, valid, None if alone else last, metrics)):
            return original(self, batch, metrics)

    return _compute_advantage


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.algorithm.adv_estimator == NAME:
            estimator, prompts = check_config(self.config), prompts_of(self.config)
            _begin(self)
            if prompts is not None:  # whether there are images is known to the preflight alone
                check = prompts_check(prompts, estimator, images=False)
                level = logging.INFO if check.state == "ok" else logging.WARNING
                logger.log(level, "Durian: %s; %s", described(estimator), check.finding)
        elif self.config.algorithm.get(NAME):
            logger.warning(UNUSED, OPTIONS, "algorithm.adv_estimator", self.config.algorithm.adv_estimator)
        return original(self, *args, **kwargs)

    return init_dataloader


def _begin(trainer: Any) -> None:
    """Forget the past: a trainer begins without one."""
    global _trainer
    _trainer = weakref.ref(trainer)
    _estimators.clear()
    _logs.clear()
    log_of(trainer.config.algorithm)  # a folder that cannot be made is an error here, not after the first rollouts


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Check before anything starts: main_ppo_sync of verl 0.8 takes its trainer along into a process out of reach."""

    @functools.wraps(original)
    def run_ppo(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.algorithm.adv_estimator == NAME:
            check_config(config)
        return original(config, *args, **kwargs)

    return run_ppo


@contextlib.contextmanager
def _given(rows: Rows) -> Iterator[Rows]:
    token = _rows.set(rows)
    try:
        yield rows
    finally:
        _rows.reset(token)


# module -> {function: parameters it is called with, change}; a name that a module imports from another is changed in
# both, so that the order of imports does not matter
_ADVANTAGE = (("data", "adv_estimator", "config"), _with_rows)
_METRICS = (("batch",), _with_metrics)
_CHANGES: dict[str, dict[str, tuple[tuple[str, ...], Callable[..., Any]]]] = {
    "verl.trainer.main_ppo": {"run_ppo": (("config",), _refusing)},
    "verl.trainer.ppo.ray_trainer": {
        "compute_advantage": _ADVANTAGE,
        "compute_data_metrics": _METRICS,
        "RayPPOTrainer._create_dataloader": (("self",), _checked),
    },
    "verl.trainer.ppo.v1.utils": {"compute_advantage": _ADVANTAGE},
    "verl.trainer.ppo.v1.trainer_base": {
        "PPOTrainer._compute_advantage": (("self", "batch", "metrics"), _with_queue),
        "PPOTrainer._init_dataloader": (("self",), _checked),
    },
    "verl.experimental.separation.ray_trainer": {
        "compute_advantage": _ADVANTAGE,
        "compute_data_metrics": _METRICS,
    },
}


def _change(module: ModuleType) -> None:
    """Change all that is to be changed in a module, or nothing; what does not fit is told when durian is asked for."""
    changes = _CHANGES[module.__name__]
    found = list(misfits((module, path, parameters) for path, (parameters, _) in changes.items()))
    _misfits.extend(found)
    if found:
        return
    for path, (_, change) in changes.items():
        of_class, _, name = path.rpartition(".")
        owner = resolved(module, of_class) if of_class else module
        function = getattr(owner, name)
        if not hasattr(function, "durian"):  # imported from a module that is changed already
            function = change(function)
            function.durian = True
            setattr(owner, name, function)


def _register(core_algos: ModuleType) -> None:
    registry = getattr(core_algos, "register_adv_est", None)
    if registry is None:
        _misfits.append("verl.trainer.ppo.core_algos has no register_adv_est")
    else:
        registry(NAME)(durian_estimator)


def _safely(hook: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run a hook inside an import of verl's, whose other estimators need the module whatever happens here."""
    try:
        hook(module)
    except Exception as error:
        _misfits.append(f"{module.__name__}: {error!r}")


def _refuse_misfits() -> None:
    if _misfits:
        raise RuntimeError(
            f"verl {importlib.metadata.version('verl')} does not fit durian_adv, which was tested with {TESTED}: "
            f"{'; '.join(_misfits)}. Install one of these"
        )


def import_changed() -> Iterator[str]:
    """Import all that is changed of this verl, so that every misfit is known; yield what cannot be imported here."""
    for module in _CHANGES:
        try:
            importlib.import_module(module)
        except Exception as error:  # of a trainer of verl's that a run may not use
            absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            if not absent:  # which is no misfit
                yield f"{module}: {error!r}"


def install() -> None:
    """Register the estimator and make the changes, now or as soon as verl's modules are imported."""
    wrapt.register_post_import_hook(functools.partial(_safely, _register), "verl.trainer.ppo.core_algos")
    for module in _CHANGES:
        wrapt.register_post_import_hook(functools.partial(_safely, _change), module)


install()
