"""Trainings of a tiny Qwen2.5-VL on PNG images through EasyR1's ``main``, ``Runner`` and Ray, on a CPU.

Its own are the configuration, the dataset, the reward manager, the driver, the packing of rollouts, the
log-probabilities and the update; ``standins/`` has what needs a GPU: vLLM's sampling, and the model without its
FSDP.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import made
import pytest
import torch
from batches import numbers
from rollout_logs import concluded, rows_of
from verl.utils.logger.logger import LOGGERS

import durian_adv
from durian_adv import durian_components, sequence_confidence
from durian_adv.diagnostics import durian_metrics

pytestmark = pytest.mark.skipif("file" not in LOGGERS, reason="this EasyR1 has no logger of files, which is read here")

HERE = Path(__file__).resolve().parent
DURIAN = {"algorithm__adv_estimator": "durian", "durian__num_confidence_buckets": 4}
PAPER = {"config": Path(durian_adv.__file__).parent / "adapters/easyr1/paper.yaml"}


class Training:
    def __init__(self, folder, which, **more):
        self.folder, self.out = folder, folder / "out"
        if which == "durian":
            more["durian__rollout_log"] = folder / "log"
        words = made.words(folder, **more)
        self.before = torch.load(folder / "start.pt")
        environment = os.environ | {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
        command = [sys.executable, "-W", "ignore", str(HERE / "launch.py"), which, *words]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        self.status, self.said = ended.returncode, ended.stdout + ended.stderr

    @property
    def log(self):
        return [json.loads(line) for line in (self.out / "experiment_log.jsonl").read_text().splitlines()]

    @property
    def batches(self):
        paths = sorted(self.folder.glob("batch_*.pt"))
        return [torch.load(path, weights_only=False) for path in paths]

    @property
    def weights(self):
        return torch.load(self.out / "global_step_2" / "actor" / "model.pt")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    def run(which, **more):
        training = Training(tmp_path_factory.mktemp("easyr1"), which, **more)
        if training.status != 0:
            print(training.said[-6000:])
        return training

    return run


@pytest.fixture(scope="module")
def durian(train):
    return train("durian", **DURIAN, **PAPER)


def test_a_training_takes_its_steps_and_changes_the_model(durian):
    assert durian.status == 0
    assert [step["step"] for step in durian.log if "durian" in step] == [1, 2]
    for step in durian.log[:2]:
        assert step["actor"]["grad_norm"] > 0
    after, before = durian.weights, durian.before
    assert set(after) == set(before)
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert any("layers" in name for name in moved)
    assert not any("visual" in name for name in moved)  # frozen in the paper's configuration


def test_the_update_gets_the_librarys_advantages_of_the_whole_batch(durian):
    assert len(durian.batches) == 2
    for (batch, columns), step in zip(durian.batches, durian.log, strict=False):
        mask, index = batch["response_mask"], numbers(columns["uid"])
        assert len(mask) == 16 * 4
        assert index.bincount().tolist() == [4] * 16
        rewards = batch["token_level_rewards"].sum(-1)
        entropy = torch.tensor([torch.nan if e is None else e for e in columns["visual_entropy"]], dtype=torch.float64)
        assert entropy.isnan().any()
        parts = durian_components(
            rewards,
            prompt_index=index,
            visual_entropy=entropy,
            confidence=sequence_confidence(batch["old_log_probs"], mask),
            num_confidence_buckets=4,
        )
        assert torch.equal(batch["advantages"], parts.advantages[:, None] * mask)
        assert bool(batch["advantages"].any())
        counted = ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")
        expected = durian_metrics(parts, rewards, prompt_index=index)
        expected |= dict.fromkeys((f"durian/{name}" for name in counted), 0.0)
        assert {f"durian/{name}": value for name, value in step["durian"].items()} == expected


def test_the_log_has_what_the_update_had(durian):
    written = rows_of(durian.folder / "log")
    assert list(written) == ["step_00000001.parquet", "step_00000002.parquet"]
    for rows, (batch, columns) in zip(written.values(), durian.batches, strict=True):
        assert [row["advantage"] for row in rows] == batch["advantages"][:, 0].tolist()
        assert [row["reward"] for row in rows] == batch["token_level_rewards"].sum(-1).tolist()
        assert [row["prompt"] for row in rows] == list(columns["uid"])
        assert [row["visual_entropy"] for row in rows] == list(columns["visual_entropy"])
    assert concluded(durian.folder / "log", num_confidence_buckets=4).tone != "none"


def test_dapos_filter_leaves_prompts_with_a_signal(durian):
    for step in durian.log[:2]:
        assert step["durian"]["no_signal_share"] == 0
        assert step["durian"]["prompts"] == 16


def test_the_configuration_is_logged_with_the_options(durian):
    stored = json.loads((durian.out / "experiment_config.json").read_text())
    assert stored["algorithm"]["adv_estimator"] == "durian"
    assert stored["durian"]["num_confidence_buckets"] == 4  # from the command line
    assert stored["durian"]["weights"] == [0.1, 0.2, 0.7]  # from the file


def test_grpo_through_the_launcher_is_easyr1s_to_the_bit(train):
    own = train("own", algorithm__adv_estimator="grpo")
    ours = train("durian", algorithm__adv_estimator="grpo")
    assert own.status == ours.status == 0
    for name, value in own.weights.items():
        assert torch.equal(value, ours.weights[name]), name
    for (a, _), (b, _) in zip(own.batches, ours.batches, strict=True):
        assert torch.equal(a["advantages"], b["advantages"])
    assert not any("durian" in step for step in ours.log)


def test_an_error_in_the_library_stops_the_training_with_its_message(train):
    stopped = train("durian", **DURIAN, durian__weights="[0,1,0]", column=False)
    assert stopped.status != 0
    assert "visual_entropy: expected a column of the dataset, for durian.weights[1] = 1.0 and images" in stopped.said
    assert not stopped.batches
