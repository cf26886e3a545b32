"""In a real local Ray: one key of the job's runtime environment brings Durian into OpenRLHF's own trainer."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
import torch
import vision
from rollout_logs import concluded, rows_of

from durian_adv import durian_components, sequence_confidence
from durian_adv.adapters.openrlhf import preflight, settings
from durian_adv.diagnostics import durian_metrics

HERE = Path(__file__).resolve().parent
OPTIONS = {"weights": [0.2, 0.4, 0.4], "num_confidence_buckets": 2, "entropy_quantiles": [0.5], "eps": 1e-6}


def run(options, *arguments):
    """Run the driver as Ray's job supervisor does, with a runtime environment that its own ``ray.init`` adds to."""
    environment = {"worker_process_setup_hook": settings.HOOK, "env_vars": {settings.OPTIONS: options}}
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": environment, "metadata": {}})}
    own = filter(None, [os.environ.get("PYTHONPATH")])  # where an older OpenRLHF lies
    path = os.pathsep.join(map(str, (HERE, HERE / "absent", HERE.parent / "trl", *own)))
    return subprocess.run(
        [sys.executable, HERE / "in_ray.py", *arguments],
        env={**os.environ, **job, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    done = run(json.dumps({**OPTIONS, "rollout_log": str(folder / "log")}), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result = torch.load(folder / "result.pt", weights_only=False)
    return {**result, "model": str(folder / "model"), "log": folder / "log"}


def test_a_worker_has_the_hook_and_nothing_of_openrlhf_and_vllms_worker_no_deepspeed(step):
    assert step["before"] == ["durian_adv.adapters.openrlhf"]
    assert step["vllm"] == ["openrlhf", "vllm", "durian_adv.adapters.openrlhf"]
    assert step["driver"] == "RemoteExperienceMaker"  # unchanged, so the trainer's worker is changed by the hook


def rows(step):
    """The rollouts that reached the policy's workers, in the order of the answers."""
    numbers = {tuple(one["observation_tokens"]): i for i, one in enumerate(step["answers"])}
    out = {}
    for kept, _, _ in step["seen"]:
        for batch in kept:
            for i, ids in enumerate(batch.sequences):
                length = int(batch.attention_mask[i].sum())
                names = ("action_mask", "action_log_probs", "advantages")
                fields = {name: getattr(batch, name)[i, : length - 1] for name in names}
                out[numbers[tuple(ids[:length].tolist())]] = fields
    assert sorted(out) == list(range(20))
    return [out[i] for i in range(20)]


def test_a_step_of_the_released_trainer_writes_its_log(step):
    (name, written), *more = rows_of(step["log"]).items()
    assert (name, more) == ("step_00000001.parquet", [])
    found, texts = rows(step), [one["prompt"] for one in step["answers"]]
    by_place = {}
    for row in written:  # in the order of the batches
        by_place.setdefault(row["text"], []).append(row)
    for prompt, group in by_place.items():
        places = [i for i, text in enumerate(texts) if text == prompt]
        used = sorted(float(found[i]["advantages"][0]) for i in places)
        assert sorted(row["advantage"] for row in group) == pytest.approx(used, abs=1e-6)
        assert sorted(row["reward"] for row in group) == sorted(step["answers"][i]["reward"] for i in places)
        assert len({(row["prompt"], row["visual_entropy"], row["group"]) for row in group}) == 1
    assert len({row["prompt"] for row in written}) == 5
    assert None not in [row["confidence"] for row in written]
    assert concluded(step["log"], num_confidence_buckets=1, entropy_quantiles=(0.5,)).tone != "none"


def test_a_step_of_the_released_trainer_has_the_advantages_of_the_library(step):
    found = rows(step)
    rewards = torch.tensor([one["reward"] for one in step["answers"]])
    model = vision.actor(step["model"]).model
    inputs = [one["mm_train_inputs"] for one in step["answers"][::4]]
    entropy = torch.tensor([float("nan") if one is None else vision.entropy(model, one) for one in inputs])
    assert entropy.isnan().tolist() == [False, False, True, False, False]
    confidence = torch.stack([sequence_confidence(row["action_log_probs"], row["action_mask"]) for row in found])
    parts = durian_components(rewards.view(5, 4), visual_entropy=entropy, confidence=confidence.view(5, 4), **OPTIONS)
    assert (parts.advantages - parts.grpo).abs().max() > 0.1
    for advantage, row in zip(parts.advantages.flatten(), found, strict=True):
        torch.testing.assert_close(row["advantages"], advantage.expand(len(row["advantages"])), atol=1e-6, rtol=1e-6)
    counted = ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")
    metrics = durian_metrics(parts, rewards.view(5, 4)) | dict.fromkeys((f"durian/{name}" for name in counted), 0.0)
    logged = {name: value for name, value in step["status"].items() if name.startswith("durian/")}
    assert logged == pytest.approx(metrics, abs=1e-3)
    assert "rollout/reward_mean" in step["status"]


def test_the_actor_computes_one_entropy_a_prompt_equally_many_on_every_rank(step):
    assert [calls for _, calls, _ in step["seen"]] == [2, 2]  # four of the five prompts have images
    assert all(training for _, _, training in step["seen"])  # as the released forward leaves its model


def test_another_estimator_is_refused_when_the_trainer_is_made(step):
    assert "ArgumentError: algo.advantage.estimator: expected 'group_norm', " in step["refused"]
    assert "got 'rloo'. Without Durian, leave durian_adv.adapters.openrlhf.setup out" in step["refused"]


def test_the_preflight_finds_the_hook_in_the_workers(step):
    checks = {check.subject: check for check in step["preflight"]}
    assert {check.state for check in checks.values()} == {"ok"}
    assert checks["workers"].finding.endswith(": the hook ran")


def test_an_option_that_cannot_be_used_stops_a_run_with_its_name_at_the_first_worker():
    bad = {"worker_process_setup_hook": settings.HOOK, "env_vars": {settings.OPTIONS: '{"weigths": [1, 0, 0]}'}}
    message = "ArgumentError: DURIAN_OPTIONS.weigths: expected one of estimator, weights,"

    class Engine:
        def answer(self):
            return "an answer"

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        ray.init(num_cpus=1, include_dashboard=False, _temp_dir=temporary, log_to_driver=False, runtime_env=bad)
        try:
            with pytest.raises(ray.exceptions.ActorDiedError, match=message):
                ray.get(ray.remote(Engine).remote().answer.remote())
            given = ["--runtime-env-json", json.dumps(bad), "--algo.advantage.estimator", "group_norm"]
            checks = {check.subject: check for check in preflight.checks(given)}
        finally:
            ray.shutdown()
    for subject in ("options", "workers"):
        assert checks[subject].state == "problem"
        assert message.removeprefix("ArgumentError: ") in checks[subject].finding
