"""How the estimator gets into verl: by each of the ways there are, in every process, whole or not at all."""

import inspect
import json
import os
import re
import subprocess
import sys
import types

import batches
import numpy as np
import pytest
import torch
import training
import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.experimental.separation import ray_trainer as separation
from verl.trainer import main_ppo
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1 import utils as v1_utils

from durian_adv.adapters.verl import estimator as adapter

# what a process finds: the estimator, the changes, and verl's own estimators bit by bit
REPORT = """
import hashlib, json, sys
import torch
FIRST
import verl
early = [name for name in sys.modules if name.startswith(("verl.trainer.ppo", "verl.experimental"))]
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base, utils
from verl.experimental.separation import ray_trainer as separation
LATER
owners = [
    ray_trainer.compute_advantage, ray_trainer.compute_data_metrics, ray_trainer.RayPPOTrainer._create_dataloader,
    utils.compute_advantage, trainer_base.PPOTrainer._compute_advantage, trainer_base.PPOTrainer._init_dataloader,
    separation.compute_advantage, separation.compute_data_metrics,
]
import numpy, batches
bits = {}
for name in ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "reinforce_plus_plus_baseline", "opo", "gpg",
             "remax", "grpo_passk", "gae"):
    data = batches.random_batch(numpy.random.default_rng(0), nan=0)
    data.batch["reward_baselines"], data.batch["values"] = torch.zeros(len(data)), data.batch["old_log_probs"]
    try:
        out = ray_trainer.compute_advantage(data, name, config=batches.algorithm())
        bits[name] = hashlib.sha256(out.batch["advantages"].numpy().tobytes()).hexdigest()
    except Exception as error:
        bits[name] = repr(error)
print("FOUND" + json.dumps({
    "early": early,
    "known": "durian" in core_algos.ADV_ESTIMATOR_REGISTRY,
    "changed": sum(hasattr(owner, "durian") for owner in owners),
    "bits": bits,
}))
"""


def report(first="", later="", **variables):
    """What a fresh process reports; its standard error."""
    code = REPORT.replace("FIRST", first).replace("LATER", later)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=training.environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, found.stderr
    return json.loads(lines[0].removeprefix("FOUND")), found.stderr


@pytest.fixture(scope="module")
def without():
    """verl alone."""
    found, _ = report(VERL_USE_EXTERNAL_PLUGINS="none")
    assert not found["known"]
    assert found["changed"] == 0
    assert len(set(found["bits"].values())) >= 6
    return found


def test_the_entry_point_installs_everything_and_other_estimators_stay_bit_equal(without):
    found, text = report()
    assert found["known"]
    assert found["changed"] == 8
    assert found["bits"] == without["bits"]
    assert found["early"] == without["early"] == []  # nothing of the trainers is imported for it
    assert "durian" not in text


def test_external_modules_do_the_same(without):
    found, _ = report(
        VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="verl_cpu,tiny,durian_adv.adapters.verl"
    )
    assert (found["known"], found["changed"], found["bits"]) == (True, 8, without["bits"])


def test_external_lib_does_the_same_after_the_trainers_are_imported(without, tmp_path):
    import tiny

    model = tiny.save_text_model(tmp_path)
    later = f"""
from verl.workers.config import HFModelConfig
HFModelConfig(path={model!r}, external_lib="durian_adv.adapters.verl")
"""
    found, _ = report(later=later, VERL_USE_EXTERNAL_PLUGINS="none")
    assert (found["known"], found["changed"], found["bits"]) == (True, 8, without["bits"])


def test_a_plugin_that_breaks_says_so_and_leaves_verl_alone(without):
    later = """
data = __import__("batches").random_batch(__import__("numpy").random.default_rng(0))
try:
    ray_trainer.compute_advantage(data, "durian", config=None)
except RuntimeError as error:
    print(f"REFUSED {error} because of {error.__cause__}", file=sys.stderr)
"""
    # verl itself swallows the error
    found, text = report("sys.modules['durian_adv.estimator'] = None", later)
    assert "durian_adv did not load: algorithm.adv_estimator=durian will fail" in text
    assert "REFUSED the estimator durian of durian_adv did not load because of import of durian_adv.estimator" in text
    assert (found["changed"], found["bits"]) == (0, without["bits"])


def test_workers_of_ray_load_it_too(local_ray):
    @local_ray.remote
    def loaded():
        import verl  # noqa: F401
        from verl.trainer.ppo import core_algos, ray_trainer

        return "durian" in core_algos.ADV_ESTIMATOR_REGISTRY, hasattr(ray_trainer.compute_advantage, "durian")

    assert local_ray.get(loaded.remote()) == (True, True)


# ----- the internals that are used -----

MODULES = {
    "verl.trainer.main_ppo": main_ppo,
    "verl.trainer.ppo.ray_trainer": ray_trainer,
    "verl.trainer.ppo.v1.utils": v1_utils,
    "verl.trainer.ppo.v1.trainer_base": trainer_base,
    "verl.experimental.separation.ray_trainer": separation,
}
INTERNALS = [(module, path) for module, paths in adapter._CHANGES.items() for path in paths]


def test_every_internal_is_changed_here():
    assert len(INTERNALS) == 9
    for module, path in INTERNALS:
        found = MODULES[module]
        for part in path.split("."):
            found = getattr(found, part)
        assert found.durian, path
    assert adapter._misfits == []
    assert core_algos.get_adv_estimator_fn("durian") is adapter.durian_estimator


def other_version(module, path, replacement):
    """A copy of a module of verl before any change, in which a function is another, or missing."""
    copy = types.ModuleType(module)
    copy.__dict__.update({name: unchanged(value) for name, value in vars(MODULES[module]).items()})
    for name in {name.rpartition(".")[0] for name in adapter._CHANGES[module]} - {""}:
        members = {key: unchanged(value) for key, value in vars(getattr(copy, name)).items()}
        members = {key: value for key, value in members.items() if key not in ("__dict__", "__weakref__")}
        setattr(copy, name, type(name, (), members))
    owner, _, name = path.rpartition(".")
    where = getattr(copy, owner) if owner else copy
    delattr(where, name) if replacement is None else setattr(where, name, replacement)
    return copy


def unchanged(value):
    return value.__wrapped__ if hasattr(value, "durian") else value


@pytest.mark.parametrize(("module", "path"), INTERNALS)
@pytest.mark.parametrize("kind", ["missing", "other parameters", "not a function"])
def test_a_verl_whose_internals_differ_is_refused_by_name_and_left_whole(monkeypatch, module, path, kind):
    replacement = {"missing": None, "other parameters": lambda something: something, "not a function": 3}[kind]
    copy = other_version(module, path, replacement)
    monkeypatch.setattr(adapter, "_misfits", [])
    adapter._change(copy)
    for name in adapter._CHANGES[module]:
        found = copy
        for part in name.split("."):
            found = getattr(found, part, None)
        assert not hasattr(found, "durian"), name
    data = batches.random_batch(np.random.default_rng(0), nan=0)
    what = f"verl {verl.__version__} does not fit durian_adv, which was tested with {adapter.TESTED}: {module}"
    with pytest.raises(RuntimeError, match=re.escape(what)) as error:
        batches.advantage(data)
    assert path.split(".")[-1] in str(error.value)
    with pytest.raises(RuntimeError, match=re.escape(what)):
        adapter.check_config(OmegaConf.create({}))
    assert batches.advantage(data, "grpo").batch["advantages"].any()


def test_an_error_while_verl_is_imported_is_kept_for_whoever_asks_for_durian(monkeypatch):
    monkeypatch.setattr(adapter, "_misfits", [])
    # a function of which Python cannot tell the parameters
    copy = other_version("verl.trainer.ppo.v1.utils", "compute_advantage", max)
    adapter._safely(adapter._change, copy)
    assert copy.compute_advantage is max
    data = batches.random_batch(np.random.default_rng(0), nan=0)
    with pytest.raises(RuntimeError, match=r"verl.trainer.ppo.v1.utils: ValueError\('no signature found for builtin"):
        batches.advantage(data)
    assert batches.advantage(data, "grpo").batch["advantages"].any()


def test_a_verl_without_a_registry_is_refused(monkeypatch):
    monkeypatch.setattr(adapter, "_misfits", [])
    adapter._register(types.ModuleType("verl.trainer.ppo.core_algos"))
    with pytest.raises(RuntimeError, match=r"verl\.trainer\.ppo\.core_algos has no register_adv_est"):
        batches.advantage(batches.random_batch(np.random.default_rng(0)))


def test_the_dispatch_still_passes_what_the_estimator_takes():
    given = set(inspect.signature(adapter.durian_estimator).parameters)
    assert {"token_level_rewards", "response_mask", "config", "index", "batch", "non_tensor_batch"} <= given
    source = inspect.getsource(ray_trainer.compute_advantage.__wrapped__)
    assert "adv_estimator_fn(**adv_kwargs)" in source
    assert 'adv_kwargs["index"] = data.non_tensor_batch["uid"]' in source


# ----- when a trainer starts -----


def bare(trainer):
    """A trainer before it has anything."""

    class Bare(trainer):
        def __init__(self):
            pass

        step = fit = on_init_end = None

    Bare.__abstractmethods__ = frozenset()
    return Bare()


@pytest.mark.parametrize(
    ("algorithm", "error"),
    [
        ({"durian": {"wieghts": [1, 0, 0]}}, r"algorithm.durian.wieghts: expected one of estimator, .* unknown option"),
        ({"durian": {"weights": [1, 0]}}, r"algorithm.durian.weights: expected 3 numbers, or 4 with category"),
        (
            {"norm_adv_by_std_in_grpo": False},
            r"algorithm.norm_adv_by_std_in_grpo: expected true, as Durian divides .* got false",
        ),
        ({"rollouts": 1}, r"actor_rollout_ref.rollout.n: expected at least 2 responses per prompt, got 1"),
    ],
)
@pytest.mark.parametrize(
    ("trainer", "method"),
    [
        (trainer_base.PPOTrainer, "_init_dataloader"),
        (ray_trainer.RayPPOTrainer, "_create_dataloader"),
        (separation.SeparateRayPPOTrainer, "_create_dataloader"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_there_is_any_data(trainer, method, algorithm, error):
    made = bare(trainer)
    rollout = {"n": algorithm.get("rollouts", 4)}
    algorithm = {"adv_estimator": "durian", **algorithm}
    made.config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": rollout}})
    arguments = () if method == "_init_dataloader" else (None, None, None, None)
    with pytest.raises(ValueError, match=error):
        getattr(made, method)(*arguments)
    # verl's own begins where ours ends
    made.config.algorithm.adv_estimator = "grpo"
    with pytest.raises(Exception, match=r"data|None") as other:
        getattr(made, method)(*arguments)
    assert "durian" not in str(other.value)


@pytest.mark.parametrize(
    ("size", "more", "prompts"),
    [
        (24, ["trainer.use_v1=False"], 24),
        (23, ["trainer.use_v1=False"], 23),
        (24, [], 24),
        (23, [], 23),
        (96, ["trainer.v1.trainer_mode=separate_async"], 24),  # verl's parameter_sync_step is 4
        (95, ["trainer.v1.trainer_mode=separate_async"], 23),
    ],
)
def test_few_prompts_for_the_buckets_are_warned_of_when_a_trainer_starts(caplog, size, more, prompts):
    with initialize_config_module("verl.trainer.config", version_base=None):
        overrides = ["algorithm.adv_estimator=durian", "actor_rollout_ref.rollout.n=4", f"data.train_batch_size={size}"]
        config = compose("ppo_trainer", overrides + more)
    v1 = config.trainer.use_v1
    made = bare(trainer_base.PPOTrainer if v1 else ray_trainer.RayPPOTrainer)
    made.config = config
    with caplog.at_level("INFO", adapter.__name__), pytest.raises((AttributeError, TypeError)):  # there is no data
        made._init_dataloader() if v1 else made._create_dataloader(None, None, None, None)
    (record,) = [record for record in caplog.records if record.name == adapter.__name__]
    assert record.levelname == ("INFO" if prompts >= 24 else "WARNING")
    if prompts >= 24:
        assert (
            f"{prompts} prompts per batch, {prompts / 12:.1f} per bucket in 12 buckets of confidence" in record.message
        )
    else:
        assert f"{prompts} prompts with confidence for 12 buckets: with fewer than 2 prompts per" in record.message


@pytest.mark.parametrize("options", [{}, {"num_confidence_buckets": 2}])
def test_options_of_durian_have_no_effect_with_another_estimator_and_that_is_said(caplog, options):
    made = bare(ray_trainer.RayPPOTrainer)
    made.config = OmegaConf.create({"algorithm": {"adv_estimator": "grpo", "durian": options}})
    with pytest.raises((AttributeError, TypeError)):  # there is no data
        made._create_dataloader(None, None, None, None)
    said = [record.getMessage() for record in caplog.records if record.name == adapter.__name__]
    assert said == (
        ["algorithm.durian is given and has no effect, as algorithm.adv_estimator is grpo"] if options else []
    )


def test_a_trainer_begins_without_a_past():
    adapter.estimator_of(batches.with_options(window=5))
    assert len(adapter._estimators) == 1
    made = bare(ray_trainer.RayPPOTrainer)
    parts = {"algorithm": {"adv_estimator": "durian"}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    made.config = OmegaConf.create(parts | {"data": {"train_batch_size": 24}})
    with pytest.raises((AttributeError, TypeError)):  # there is no data
        made._create_dataloader(None, None, None, None)
    assert adapter._estimators == {}


QUEUED = {
    "algorithm": {"adv_estimator": "durian"},
    "actor_rollout_ref": {"rollout": {"n": 4}},
    "trainer": {},
    "transfer_queue": {"enable": True},
}


def test_the_queue_is_refused_before_anything_starts_by_a_verl_that_has_main_ppo_sync(monkeypatch):
    """That of verl 0.8, whose trainer counts padding as prompts; no other v0 puts its batches into the queue."""
    started = []
    run = adapter._refusing(lambda config, task_runner_class: started.append(config))
    config = OmegaConf.create(QUEUED)
    run(config, None)
    assert started.pop() is config
    monkeypatch.setattr(adapter, "SYNC", "verl.trainer.main_ppo")  # a module that there is
    what = rf"^transfer_queue.enable: expected false, as with verl {verl.__version__} \(main_ppo_sync\) .* use verl.tr"
    with pytest.raises(ValueError, match=what):
        run(config, None)
    made = bare(ray_trainer.RayPPOTrainer)
    made.config = config
    with pytest.raises(ValueError, match=what):
        made._create_dataloader(None, None, None, None)
    assert not started
    for change in ({"algorithm": {"adv_estimator": "grpo"}}, {"trainer": {"use_v1": True}}):
        run(OmegaConf.merge(config, change), None)
    assert len(started) == 2


def test_verls_separate_trainers_use_the_same_step_and_log_the_metrics():
    made = object.__new__(separation.SeparateRayPPOTrainer)
    data = batches.random_batch(np.random.default_rng(1), nan=0)
    entropy = batches.numbers(data.non_tensor_batch["uid"]).double()
    made.metrics, made.timing_raw = {}, {}
    made.reward_tensor = data.batch["token_level_rewards"].clone()
    made.reward_extra_infos_dict = {"visual_entropy": entropy.tolist()}  # as a reward function returned it
    algorithm = batches.with_options(num_confidence_buckets=2)
    rollout = {"n": 4}
    made.config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": rollout}})
    out = made._fit_compute_advantage(data)
    wanted = batches.expected(data, entropy=entropy, num_confidence_buckets=2).advantages
    assert torch.equal(out.batch["advantages"], wanted[:, None] * data.batch["response_mask"])
    assert out.durian_metrics["durian/visual_entropy_missing_share"] == 0
    assert separation.compute_data_metrics.durian


def test_the_tests_run_in_the_environment_that_is_meant():
    assert os.environ["VERL_PLATFORM"] == "cpu"
    assert "torchvision" not in sys.modules
