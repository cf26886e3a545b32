"""verl 0.6 to 0.8, which have v0 alone and load no plugin by themselves: what works, and what is refused."""

import importlib.util
import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import batches
import numpy as np
import pytest
import tiny
import training
import verl
from hydra import compose, initialize_config_module
from packaging.version import Version
from verl.trainer.ppo import core_algos, ray_trainer

from durian_adv.adapters.verl import estimator as adapter
from durian_adv.adapters.verl.preflight import checks

WITHOUT = ",".join(training.SUPPORT)  # the external modules that the tests need, ours not among them
SYNC = importlib.util.find_spec("verl.trainer.main_ppo_sync") is not None  # of verl 0.8 alone


def test_this_verl_is_one_of_those_tested():
    assert Version(adapter.OLDEST_TESTED) <= training.VERL < Version(adapter.NEWEST_TESTED)
    assert not training.V1


def in_a_process_of_its_own(modules):
    """What verl has when these are its external modules."""
    code = (
        "import json, verl\n"
        "from verl.trainer import main_ppo\n"
        "from verl.trainer.ppo import core_algos, ray_trainer as r\n"
        "owners = [main_ppo.run_ppo, r.compute_advantage, r.compute_data_metrics, r.RayPPOTrainer._create_dataloader]\n"
        "known = 'durian' in core_algos.ADV_ESTIMATOR_REGISTRY\n"
        "print('FOUND' + json.dumps([known, sum(hasattr(owner, 'durian') for owner in owners)]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=training.environment(VERL_USE_EXTERNAL_MODULES=modules),
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")] or [done.stderr]
    return json.loads(line.removeprefix("FOUND"))


def test_the_variable_brings_the_estimator_and_without_it_verl_does_not_know_its_name():
    assert in_a_process_of_its_own(f"tiny,{training.ADAPTER}") == [True, 4]
    assert in_a_process_of_its_own("tiny") == [False, 0]


def test_nothing_that_is_used_is_missing():
    assert adapter._misfits == []
    assert core_algos.get_adv_estimator_fn("durian") is adapter.durian_estimator
    for changed in (ray_trainer.compute_advantage, ray_trainer.RayPPOTrainer._create_dataloader):
        assert changed.durian


# ----- before a run -----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pictures = [b"1", b"2", b"3", b"4"]
    rows = {
        "text": tiny.rows(4),
        "column": tiny.rows(4, pictures, [1.0, 2.0, 3.0, 4.0], column=True, extra="other"),
        "extra_info": tiny.rows(4, pictures, [1.0, 2.0, 3.0, 4.0]),
    }
    return {name: tiny.save_rows(folder / f"{name}.parquet", made) for name, made in rows.items()}


def found(data, which, program="verl.trainer.main_ppo", **options):
    words = training.overrides("model", data[which], mode="v0", **{"data.train_batch_size": 48, **options})
    named = ["--program", program] if program else []
    return {check.subject: check for check in checks(["--no-ray", *named, *words])}


def test_the_preflight_reads_the_configuration_of_this_verl(data, monkeypatch):
    text = found(data, "text")
    assert {check.state for check in text.values()} == {"ok"}
    assert text["plugin"].finding.startswith(f"verl {verl.__version__} loads durian_adv")
    assert text["prompts"].finding == "48 prompts per batch, 4.0 per bucket in 12 buckets of confidence"
    assert found(data, "extra_info")["entropy"].state == "ok"
    assert found(data, "column")["entropy"].state == "warning"  # does not reach v0; the reward function must return it
    misspelt = found(data, "text", **{"+algorithm.durian.wieghts": "[1,0,0]"})["options"]
    assert misspelt.state == "problem"
    assert misspelt.finding.startswith("algorithm.durian.wieghts: expected one of")


def test_the_preflight_names_the_variable_that_this_verl_needs(data, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", WITHOUT)
    check = found(data, "text")["plugin"]
    assert check.state == "problem"
    assert f"verl {verl.__version__} does not load durian_adv" in check.finding
    assert f"set VERL_USE_EXTERNAL_MODULES={training.ADAPTER}" in check.finding


def test_the_preflight_knows_that_external_lib_is_loaded_by_the_models_workers_alone(data, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", WITHOUT)
    check = found(data, "text", **{"actor_rollout_ref.model.external_lib": training.ADAPTER})["plugin"]
    assert check.state == "problem"
    assert check.finding.endswith(
        "as v0 does not load actor_rollout_ref.model.external_lib where the estimator is needed"
    )


@pytest.mark.training
@pytest.mark.skipif(not SYNC, reason="one verl that has both programs is enough")
@pytest.mark.parametrize("program", ["main_ppo", "main_ppo_sync"])
def test_a_run_with_external_lib_stops_as_verl_does_not_know_the_name(data, tmp_path, program):
    options = {"actor_rollout_ref.model.external_lib": training.ADAPTER}
    words = training.overrides(tiny.save_text_model(tmp_path), data["text"], mode="v0", **options)
    given = {"VERL_USE_EXTERNAL_MODULES": WITHOUT}
    run = training.train(words, module=f"verl.trainer.{program}", **given)
    assert run.status != 0
    assert "Unknown advantage estimator simply: durian" in run.text
    assert not run.steps


def test_the_preflight_asks_a_worker_of_ray(data):
    command = [str(Path(sys.executable).with_name("durian-adv")), "preflight", "verl"]
    words = training.overrides("model", data["text"], mode="v0")
    for modules, status in ((f"{WITHOUT},{training.ADAPTER}", 0), (WITHOUT, 2)):
        with tempfile.TemporaryDirectory(prefix="verl") as folder:  # a short path: Ray's sockets lie in it
            run = subprocess.run(
                [*command, *words, f"+ray_kwargs.ray_init._temp_dir={folder}"],
                env=training.environment(VERL_USE_EXTERNAL_MODULES=modules),
                capture_output=True,
                text=True,
                check=False,
            )
        assert run.returncode == status, run.stdout + run.stderr
        (worker,) = [line for line in run.stdout.splitlines() if " workers: node " in line]
        assert worker.startswith("ok " if status == 0 else "problem ")
        assert ("loads durian_adv" if status == 0 else "verl does not know the estimator durian") in worker


# ----- main_ppo_sync of verl 0.8, whose trainer keeps its batches in a queue -----


def test_the_preflight_refuses_it_if_named_and_warns_of_it_if_no_program_is(data):
    assert found(data, "text")["program"].state == "ok"
    unnamed, named = (found(data, "text", program)["program"] for program in (None, "verl.trainer.main_ppo_sync"))
    if SYNC:
        assert (unnamed.state, named.state) == ("warning", "problem")
        assert named.finding == f"verl.trainer.main_ppo_sync is refused, as {REASON}"
        assert unnamed.finding.endswith(f"; {named.finding}")
    else:
        assert (unnamed.state, named.state) == ("ok", "problem")
        assert named.finding.endswith(f"main_ppo_sync cannot be found, with verl {verl.__version__}")


REASON = (
    f"with verl {verl.__version__} (main_ppo_sync) padding would count as prompts: use verl.trainer.main_ppo, "
    f"or verl {adapter.NEWEST_TESTED}"
)


REFUSED = f"transfer_queue.enable: expected false, as {REASON}, got true"


@pytest.mark.skipif(not SYNC, reason="this verl has no main_ppo_sync")
def test_main_ppo_sync_is_refused_before_it_starts_anything(data, tmp_path):
    options = {"+algorithm.durian.estimator": "batch_std"}  # which needs nothing that could be missing
    words = training.overrides(tiny.save_text_model(tmp_path), data["text"], mode="v0", **options)
    run = training.train(words, module="verl.trainer.main_ppo_sync")
    assert run.status != 0
    assert f"ArgumentError: {REFUSED}" in run.text, run.text[-5000:]
    assert not run.steps


# as a driver without the adapter sends it, of python -m verl.trainer.main_ppo_sync: by value, as what lies in __main__
SENT = """
import sys
import ray.cloudpickle
from verl.trainer import main_ppo_sync
assert not hasattr(main_ppo_sync.run_ppo, "durian")
ray.cloudpickle.register_pickle_by_value(main_ppo_sync)
with open(sys.argv[1], "wb") as file:
    ray.cloudpickle.dump(main_ppo_sync.compute_advantage_for_multi_trajectories, file)
"""


@pytest.mark.skipif(not SYNC, reason="this verl has no main_ppo_sync")
def test_main_ppo_sync_is_refused_where_the_workers_alone_have_the_adapter(tmp_path):
    file = tmp_path / "function"
    command = [sys.executable, "-W", "ignore", "-c", SENT, str(file)]
    subprocess.run(command, env=training.environment(VERL_USE_EXTERNAL_MODULES=WITHOUT), check=True)
    compute = pickle.loads(file.read_bytes())
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer", ["algorithm.adv_estimator=durian", "+algorithm.durian.num_confidence_buckets=2"]
        )
    batch = batches.random_batch(np.random.default_rng(0))
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(batch.non_tensor_batch["uid"])]
    assert compute(batch, keys, "durian", config=config.algorithm).durian_metrics["durian/prompts"] == 6
    config.transfer_queue.enable = True  # as main_ppo_sync does
    config = pickle.loads(pickle.dumps(config))
    with pytest.raises(ValueError, match=re.escape(REFUSED)):
        compute(batch, keys, "durian", config=config.algorithm)
    assert compute(batch, keys, "grpo", config=config.algorithm).batch["advantages"].any()
