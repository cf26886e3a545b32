"""verl's v1 advantage step over a real TransferQueue: padding, rollouts of several outputs, and what rows carry."""

import uuid

import batches
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from durian_adv.adapters.verl.estimator import last_outputs
from durian_adv.diagnostics import durian_metrics

NOTHING = object()  # instead of a value: the row has no such field


def stored(queue, rng, prompts=5, outputs=1, nan=0.0, **columns):
    """Put rollouts into the queue as verl's agent loops do; return the batch that verl samples, shuffled."""
    keys, rows = [], []
    for prompt in range(prompts):
        uid = uuid.uuid4().hex
        for rollout in range(rng.integers(1, 5)):
            reward = np.nan if rng.random() < nan else rng.integers(0, 3) / 2
            count = rng.integers(1, outputs + 1)
            for output in range(count):
                length = int(rng.integers(1, batches.LENGTH + 1))
                scores = torch.zeros(length)
                scores[-1] = reward
                keys.append(f"{uid}_{rollout}_{output}")
                rows.append(
                    {
                        "uid": uid,
                        "prompts": torch.ones(3, dtype=torch.int64),
                        "responses": torch.ones(length, dtype=torch.int64),
                        "response_mask": torch.ones(length, dtype=torch.int64),
                        "rm_scores": scores,
                        "rollout_log_probs": torch.zeros(length),
                        "old_log_probs": torch.from_numpy(-rng.random(length)).float(),
                        "position_ids": torch.arange(length),
                        **{name: make(prompt) for name, make in columns.items()},
                    }
                )
    order = rng.permutation(len(keys))
    keys, rows = [keys[i] for i in order], [rows[i] for i in order]
    tags = [{"status": "success", "seq_len": 3 + len(row["responses"])} for row in rows]
    ragged = {name for row in rows for name, value in row.items() if value is NOTHING}
    whole = [{name: value for name, value in row.items() if name not in ragged} for row in rows]
    fields = list_of_dict_to_tensordict(whole)
    batch = queue.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=tags)
    for key, row in zip(keys, rows, strict=True):
        if more := {name: row[name] for name in ragged if row[name] is not NOTHING}:
            queue.kv_batch_put([key], "train", fields=list_of_dict_to_tensordict([more]), tags=[{}])
    return batch


def step(trainer, batch, estimator="durian", **options):
    """verl's own advantage step of a v1 trainer that has nothing but its configuration; rows as verl stores them."""
    algorithm = OmegaConf.merge(batches.with_options(**options), {"adv_estimator": estimator})
    made = object.__new__(trainer)
    made.config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 4}}})
    metrics = {}
    out = made._compute_advantage(batch, metrics=metrics)
    import transfer_queue

    data = transfer_queue.kv_batch_get(out.keys, out.partition_id, select_fields=["advantages", "returns"])
    ours = {name: value for name, value in metrics.items() if name.startswith("durian/")}
    assert len(ours) < len(metrics)  # verl logs its own beside
    return list(data["advantages"].unbind()), list(data["returns"].unbind()), ours


def read(batch, name):
    import transfer_queue

    return transfer_queue.kv_batch_get(batch.keys, batch.partition_id, select_fields=["uid", name])[name]


def scores(batch):
    """Rewards, prompts and confidences of the rows of a batch."""
    rewards = torch.stack([row.sum() for row in read(batch, "rm_scores").unbind()])
    confidence = torch.stack([row.sum() for row in read(batch, "old_log_probs").unbind()])
    return rewards, batches.numbers(np.array([key.split("_")[0] for key in batch.keys])), confidence


TRAINERS = [PPOTrainerSync, PPOTrainerColocateAsync, PPOTrainerSeparateAsync]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_v1_trainers_store_the_librarys_advantages_and_log_its_metrics(queue, trainer):
    from durian_adv import durian_components

    batch = stored(queue, np.random.default_rng(0), nan=0.2, visual_entropy=lambda prompt: [1.0, 2.0, None][prompt % 3])
    advantages, returns, metrics = step(trainer, batch, num_confidence_buckets=2)
    rewards, index, confidence = scores(batch)
    entropy = torch.tensor([np.nan if value is None else value for value in read(batch, "visual_entropy")])
    wanted = durian_components(
        rewards, prompt_index=index, visual_entropy=entropy, confidence=confidence, num_confidence_buckets=2
    )
    lengths = [len(row) for row in read(batch, "rm_scores").unbind()]
    for row, value, length in zip(advantages, wanted.advantages, lengths, strict=True):
        torch.testing.assert_close(row, value.expand(length), atol=1e-6, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(advantages, returns, strict=True))
    assert wanted.advantages.any()
    counted = batches.COUNTED | {"durian/unscored_share": float(rewards.isnan().double().mean())}
    right = durian_metrics(wanted, rewards, prompt_index=index) | counted
    assert metrics == pytest.approx(right, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("carrier", "value"),
    [
        ("visual_entropy", lambda prompt: float(prompt)),
        ("extra_info", lambda prompt: {"index": prompt, "visual_entropy": float(prompt)}),
        ("extra_fields", lambda prompt: {"reward_extra_info": {"score": 0, "visual_entropy": float(prompt)}}),
    ],
)
def test_the_entropy_is_found_in_each_field_of_the_queue(queue, carrier, value):
    fields = {"multi_modal_inputs": lambda _: {"pixel_values": torch.zeros(2, 2)}, carrier: value}
    batch = stored(queue, np.random.default_rng(1), prompts=8, **fields)
    _, _, metrics = step(PPOTrainerSync, batch)
    assert metrics["durian/visual_entropy_mean"] == 3.5
    assert metrics["durian/visual_entropy_missing_share"] == 0


def test_images_without_their_entropy_are_an_error(queue):
    images = {"multi_modal_inputs": lambda prompt: {"pixel_values": torch.zeros(2, 2)} if prompt == 2 else {}}
    batch = stored(queue, np.random.default_rng(2), **images)
    with pytest.raises(ValueError, match="visual_entropy: expected a number for prompts with images"):
        step(PPOTrainerSync, batch)
    advantages, _, _ = step(PPOTrainerSync, batch, weights=[0.3, 0, 0.7])
    assert any(row.any() for row in advantages)


def test_a_field_of_some_rows_only_is_read(queue):
    def some(value):
        return lambda prompt: value(prompt) if prompt % 2 else NOTHING

    images = some(lambda _: {"pixel_values": torch.zeros(2, 2)})
    batch = stored(queue, np.random.default_rng(5), prompts=8, multi_modal_inputs=images)
    with pytest.raises(ValueError, match="visual_entropy: expected a number for prompts with images"):
        step(PPOTrainerSync, batch)
    batch = stored(queue, np.random.default_rng(5), prompts=8, multi_modal_inputs=images, visual_entropy=some(float))
    _, _, metrics = step(PPOTrainerSync, batch)
    assert metrics["durian/visual_entropy_mean"] == 4  # of 1, 3, 5, 7
    assert metrics["durian/visual_entropy_missing_share"] == 0.5


def test_pixels_are_not_fetched_for_nothing(queue, monkeypatch):
    pixels = {"multi_modal_inputs": lambda _: {"pixel_values": torch.zeros(2, 2)}}
    asked = []
    get = queue.kv_batch_get
    monkeypatch.setattr(queue, "kv_batch_get", lambda keys, *a, **k: asked.append((k, len(keys))) or get(keys, *a, **k))

    def rows_of_pixels():
        rows = sum(count for given, count in asked if "multi_modal_inputs" in given["select_fields"])
        asked.clear()
        return rows

    batch = stored(queue, np.random.default_rng(6), prompts=8, **pixels, visual_entropy=float)
    step(PPOTrainerSync, batch)
    assert rows_of_pixels() == 0
    batch = stored(queue, np.random.default_rng(6), prompts=8, **pixels)
    with pytest.raises(ValueError, match="visual_entropy: expected a number for prompts with images"):
        step(PPOTrainerSync, batch)
    assert rows_of_pixels() == 1
    step(PPOTrainerSync, batch, weights=[0.3, 0, 0.7])
    assert rows_of_pixels() == 0


def test_padding_gets_nothing_and_influences_nothing(queue):
    rng = np.random.default_rng(3)
    batch = stored(queue, rng, prompts=6, visual_entropy=lambda prompt: float(prompt))
    plain, _, metrics = step(PPOTrainerSync, batch, num_confidence_buckets=3)
    padded = upsample_batch_to_divisible_size(batch, len(batch) + 5, eos_token_id=1)
    assert len(padded) == len(batch) + 5
    padded.reorder(rng.permutation(len(padded)).tolist())
    advantages, _, with_padding = step(PPOTrainerSync, padded, num_confidence_buckets=3)
    wanted = dict(zip(batch.keys, plain, strict=True))
    for key, tag, row in zip(padded.keys, padded.tags, advantages, strict=True):
        if tag.get("is_padding"):
            assert not row.any()
        else:
            assert torch.equal(row, wanted[key])
    assert with_padding == metrics


def test_weights_1_0_0_are_verls_grpo_also_for_rollouts_of_several_outputs(queue):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        batch = stored(queue, rng, prompts=8, outputs=3)
        theirs, _, _ = step(PPOTrainerSync, batch, "grpo")
        ours, _, metrics = step(PPOTrainerSync, batch, weights=[1.0, 0, 0])
        rewards, index, _ = scores(batch)
        signal = 0
        for row, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
            there = rewards[index == index[row]]
            if there.min() < there.max():
                signal += 1
                torch.testing.assert_close(mine, their, atol=1e-6, rtol=1e-6)
            else:
                assert not mine.any()
        assert signal
        rollouts = {key.rpartition("_")[0] for key in batch.keys}
        assert metrics["durian/rollouts"] == len(rollouts) < len(batch.keys)


def test_a_rollout_of_several_outputs_has_the_reward_of_the_last_and_the_confidence_of_all(queue):
    from durian_adv import durian_components, sequence_confidence

    batch = stored(queue, np.random.default_rng(7), prompts=12, outputs=3)
    advantages, _, metrics = step(PPOTrainerSync, batch, num_confidence_buckets=3, confidence_reduction="mean")
    rows = {key: i for i, key in enumerate(batch.keys)}
    rollouts = sorted({key.rpartition("_")[0] for key in rows})
    assert len(rollouts) < len(rows)
    outputs = [[i for key, i in rows.items() if key.rpartition("_")[0] == name] for name in rollouts]
    lasts = [max(of_one, key=lambda i: int(batch.keys[i].rpartition("_")[2])) for of_one in outputs]
    tokens = list(read(batch, "old_log_probs").unbind())
    rewards, index, _ = scores(batch)
    wanted = durian_components(
        rewards[lasts],
        prompt_index=index[lasts],
        confidence=torch.stack(
            [sequence_confidence(torch.cat([tokens[i] for i in of_one]), reduction="mean") for of_one in outputs]
        ),
        num_confidence_buckets=3,
    )
    assert metrics["durian/rollouts"] == len(rollouts)
    for value, of_one in zip(wanted.advantages, outputs, strict=True):
        for i in of_one:
            torch.testing.assert_close(advantages[i], value.expand(len(tokens[i])), atol=1e-6, rtol=0)


def test_a_category_is_fetched_where_it_has_a_weight_and_nowhere_else(queue, monkeypatch):
    from durian_adv import durian_components

    asked = []
    get = queue.kv_batch_get
    monkeypatch.setattr(queue, "kv_batch_get", lambda *a, **k: asked.extend(k["select_fields"]) or get(*a, **k))
    columns = {"data_source": lambda prompt: f"set {prompt % 2}"}
    batch = stored(queue, np.random.default_rng(8), prompts=8, **columns)
    step(PPOTrainerSync, batch)
    assert "data_source" not in asked
    advantages, _, metrics = step(PPOTrainerSync, batch, weights=[0.5, 0, 0, 0.5])
    assert "data_source" in asked
    assert metrics["durian/categories"] == 2
    rewards, index, _ = scores(batch)
    category = batches.numbers(np.array(list(read(batch, "data_source"))))
    wanted = durian_components(rewards, prompt_index=index, category=category, weights=(0.5, 0, 0, 0.5))
    for row, value in zip(advantages, wanted.advantages, strict=True):
        torch.testing.assert_close(row, value.expand(len(row)), atol=1e-6, rtol=0)


def test_a_window_goes_from_step_to_step(queue):
    found = []
    for seed in range(4):
        batch = stored(queue, np.random.default_rng(seed), prompts=3)
        _, _, metrics = step(PPOTrainerSync, batch, window=8, num_confidence_buckets=2)
        found.append(metrics["durian/window_prompts"])
    assert found == [0, 3, 6, 8]


def test_the_last_output_of_a_rollout_is_the_one_with_the_largest_number():
    keys = ["a_0_0", "a_0_10", "a_0_9", "a_1_0", "b_c_0_1", "b_c_0_0"]
    assert last_outputs(keys).tolist() == [1, 1, 1, 3, 4, 4]
    assert last_outputs([]).tolist() == []


def test_other_estimators_touch_neither_the_metrics_nor_the_queue(queue, monkeypatch):
    batch = stored(queue, np.random.default_rng(4), visual_entropy=lambda prompt: float(prompt))
    asked = []
    get = queue.kv_batch_get
    monkeypatch.setattr("durian_adv.adapters.verl.estimator.last_outputs", None)  # nothing of ours is called
    monkeypatch.setattr(queue, "kv_batch_get", lambda *a, **k: asked.append(k["select_fields"]) or get(*a, **k))
    wrapped, original = PPOTrainerSync._compute_advantage, PPOTrainerSync._compute_advantage.__wrapped__
    found = []
    for function in (wrapped, original):
        monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", function)
        found.append(step(PPOTrainerSync, batch, "rloo"))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][2] == found[1][2] == {}
    assert len(asked) == 4
    assert asked[0] == asked[2]
