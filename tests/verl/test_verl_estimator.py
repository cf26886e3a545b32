"""The estimator as verl's trainers but v1 call it: on a whole batch, through ``ray_trainer.compute_advantage``."""

import gc
import sys

import batches
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer

import durian_adv
from durian_adv import baselines, durian_components, sequence_confidence, weighting
from durian_adv._src.options import ESTIMATORS
from durian_adv.adapters.verl import durian_estimator
from durian_adv.adapters.verl import estimator as adapter
from durian_adv.diagnostics import durian_metrics
from durian_adv.window import windowed_components

seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=60, deadline=None)


def close(actual, wanted):
    return (actual - wanted).abs() <= 1e-6 * wanted.abs().clamp(min=1)


def spread(advantages, data):
    return advantages[:, None] * data.batch["response_mask"]


@examples
@given(seed=seeds, nan=st.sampled_from((0.0, 0.2)))
def test_weights_1_0_0_are_verls_grpo_where_there_is_signal_and_zero_elsewhere(seed, nan):
    data = batches.random_batch(np.random.default_rng(seed), nan=nan)
    ours = batches.advantage(data, weights=[1.0, 0, 0]).batch["advantages"]
    finite = data.select_idxs(batches.rewards_of(data).isfinite().numpy())  # one NaN spoils its whole group in verl
    theirs = torch.zeros_like(ours)
    theirs[batches.rewards_of(data).isfinite()] = batches.advantage(finite, "grpo").batch["advantages"]
    rewards, uid = batches.rewards_of(data), data.non_tensor_batch["uid"]
    for prompt in set(uid):
        rows = torch.from_numpy(uid == prompt)
        there = rewards[rows][rewards[rows].isfinite()]
        if len(there) > 1 and there.min() < there.max():
            assert close(ours[rows], theirs[rows]).all()
        else:  # verl has round-off over 1e-6 there, and the raw reward for a response without others
            assert not ours[rows].any()


@examples
@given(seed=seeds, shift=st.sampled_from((0.0, 0.9, 5.0)), scale=st.sampled_from((0.01, 0.1, 1.0)))
def test_where_rewards_hardly_differ_ours_are_exact_and_verls_are_rounded(seed, shift, scale):
    rng = np.random.default_rng(seed)
    data = batches.random_batch(rng, nan=0)
    data.batch["token_level_rewards"] *= torch.from_numpy(shift + scale * rng.random((len(data), 1))).float()
    ours = batches.advantage(data, weights=[1.0, 0, 0]).batch["advantages"]
    theirs = batches.advantage(data, "grpo").batch["advantages"]
    rewards, uid = batches.rewards_of(data).double(), data.non_tensor_batch["uid"]
    for prompt in set(uid):
        rows = torch.from_numpy(uid == prompt)
        there, mask = rewards[rows], data.batch["response_mask"][rows] != 0
        if len(there) > 1 and there.min() < there.max():
            exact = ((there - there.mean()) / (there.std() + 1e-6))[:, None] * mask
            size = exact.abs().clamp(min=1)
            assert ((ours[rows] - exact).abs() <= 2e-7 * size).all()
            # what float32 loses in a mean, over a std
            lost = 2e-7 * there.abs().max() / there.std() + 1e-6
            assert ((theirs[rows] - exact).abs() <= lost * size).all()


@examples
@given(seed=seeds, reduction=st.sampled_from(("sum", "mean")), data=st.data())
def test_advantages_are_the_librarys_on_the_tokens_of_a_response_and_no_others(seed, reduction, data):
    rng = np.random.default_rng(seed)
    batch = batches.random_batch(rng, prompts=data.draw(st.sampled_from((2, 3, 6, 9))))
    uids = batch.non_tensor_batch["uid"]
    assume(len(set(uids)) < len(uids))  # else they are ids of rows, which are refused
    options = {"num_confidence_buckets": data.draw(st.integers(1, 4)), "entropy_quantiles": [0.5], "eps": 1e-4}
    of_prompt = {uid: data.draw(st.sampled_from((1.0, 2.0, 3.5, None))) for uid in set(batch.non_tensor_batch["uid"])}
    entropy = [of_prompt[uid] for uid in batch.non_tensor_batch["uid"]]
    batch.non_tensor_batch["extra_info"] = np.array([{"visual_entropy": value} for value in entropy], dtype=object)
    out = batches.advantage(batch, confidence_reduction=reduction, **options)
    as_numbers = torch.tensor([np.nan if value is None else value for value in entropy], dtype=torch.float64)
    wanted = batches.expected(
        batch, entropy=None if bool(as_numbers.isnan().all()) else as_numbers, reduction=reduction, **options
    )
    assert torch.equal(out.batch["advantages"], spread(wanted.advantages, batch))
    assert torch.equal(out.batch["returns"], out.batch["advantages"])
    assert not out.batch["advantages"][batch.batch["response_mask"] == 0].any()
    metrics = ray_trainer.compute_data_metrics
    index = batches.numbers(batch.non_tensor_batch["uid"])
    rewards, valid = batches.rewards_of(batch), (batch.batch["response_mask"] != 0).any(1)
    wanted_metrics = durian_metrics(wanted, rewards, prompt_index=index, valid=valid)
    for name, value in wanted_metrics.items():
        assert out.durian_metrics[name] == pytest.approx(value, nan_ok=True), name
    assert out.durian_metrics.keys() - wanted_metrics.keys() == batches.COUNTED.keys()
    assert metrics.durian


def test_no_responses_have_no_advantages():
    assert batches.advantage(batches.random_batch(np.random.default_rng(0), prompts=0)).batch["advantages"].shape == (
        0,
        6,
    )


def test_rows_keep_their_order_and_no_order_changes_a_bit():
    rng = np.random.default_rng(3)
    data = batches.random_batch(rng, prompts=12)
    order = rng.permutation(len(data))
    out, moved = batches.advantage(data), batches.advantage(data.select_idxs(order))
    assert torch.equal(moved.batch["advantages"], out.batch["advantages"][torch.from_numpy(order)])
    assert (out.non_tensor_batch["uid"] == data.non_tensor_batch["uid"]).all()


@pytest.mark.parametrize("carrier", ["a column", "extra_info", "both"])
def test_the_entropy_is_found_where_a_batch_carries_it(carrier):
    data = batches.random_batch(np.random.default_rng(4), nan=0)
    entropy = batches.numbers(data.non_tensor_batch["uid"]).double()
    if carrier != "a column":
        other = entropy if carrier == "extra_info" else -entropy
        data.non_tensor_batch["extra_info"] = np.array([{"visual_entropy": v} for v in other.tolist()], dtype=object)
    if carrier != "extra_info":  # as verl flattens what a reward function returns
        data.non_tensor_batch["visual_entropy"] = entropy.numpy()
    out = batches.advantage(data, weights=[0, 1, 0]).batch["advantages"]
    wanted = batches.expected(data, entropy=entropy, weights=(0, 1, 0)).advantages
    assert torch.equal(out, spread(wanted, data))
    assert out.any()


def test_images_without_their_entropy_are_an_error_and_text_alone_is_none():
    data = batches.random_batch(np.random.default_rng(5), nan=0)
    text_only = batches.advantage(data)
    wanted = batches.expected(data).advantages
    assert torch.equal(text_only.batch["advantages"], spread(wanted, data))
    assert not any("entropy" in name for name in text_only.durian_metrics)
    inputs = [{}] * (len(data) - 1) + [{"pixel_values": torch.zeros(4, 3), "image_grid_thw": torch.ones(1, 3)}]
    data.non_tensor_batch["multi_modal_inputs"] = np.array(inputs, dtype=object)
    data.non_tensor_batch["extra_info"] = np.array([{"visual_entropy": None}] * len(data), dtype=object)
    with pytest.raises(ValueError, match="visual_entropy: expected a number for prompts with images"):
        batches.advantage(data)
    without = batches.advantage(data, weights=[0.1, 0, 0.7]).batch["advantages"]
    assert torch.equal(without, spread(batches.expected(data, weights=(0.1, 0, 0.7)).advantages, data))


@pytest.mark.parametrize("inputs", [{"image_embeds": 1}, {"pixel_values_videos": 1}, {"of_a_processor_to_come": 1}])
def test_any_input_beside_text_and_sound_needs_an_entropy(inputs):
    data = batches.random_batch(np.random.default_rng(5), nan=0)
    data.non_tensor_batch["visual_entropy"] = np.full(len(data), np.nan)
    of_text = {"token_type_ids": 1, "mm_token_type_ids": 1}
    # of the processors of Qwen2.5-Omni and Qwen2-Audio, of Gemma 3n, of Phi-4
    of_sound = (
        "input_features",
        "feature_attention_mask",
        "input_features_mask",
        "audio_seqlens",
        "input_audio_embeds",
    )
    unseen = [of_text, dict.fromkeys(of_sound, 1)] * len(data)
    data.non_tensor_batch["multi_modal_inputs"] = np.array(unseen[: len(data)], dtype=object)
    without = batches.expected(data, weights=(0.1, 0.2, 0.7)).advantages
    assert torch.equal(batches.advantage(data).batch["advantages"], spread(without, data))
    data.non_tensor_batch["multi_modal_inputs"][0] = inputs
    with pytest.raises(ValueError, match="visual_entropy: expected a number for prompts with images"):
        batches.advantage(data)


@pytest.mark.parametrize("value", ["high", True])
def test_an_entropy_that_is_no_number_is_named(value):
    data = batches.random_batch(np.random.default_rng(6))
    data.non_tensor_batch["extra_info"] = np.array([{"visual_entropy": value}] * len(data), dtype=object)
    with pytest.raises(ValueError, match=rf"^extra_info.visual_entropy: expected a number or None, got {value!r}"):
        batches.advantage(data)


@pytest.mark.parametrize(("weights", "missing"), [([0, 1, 0], "non_tensor_batch"), ([0, 0, 1], "old_log_probs")])
def test_nothing_is_left_out_because_nothing_was_passed(weights, missing):
    data = batches.random_batch(np.random.default_rng(6))
    arguments = data.batch["token_level_rewards"], data.batch["response_mask"], batches.with_options(weights=weights)
    with pytest.raises(ValueError, match=f"^{missing}: expected"):
        durian_estimator(*arguments, index=data.non_tensor_batch["uid"])


def test_the_estimator_takes_the_batch_from_verl_should_verl_pass_it():
    data = batches.random_batch(np.random.default_rng(7))
    entropy = batches.numbers(data.non_tensor_batch["uid"]).double()
    out = durian_estimator(
        token_level_rewards=data.batch["token_level_rewards"],
        response_mask=data.batch["response_mask"],
        config=batches.with_options(num_confidence_buckets=3),
        index=data.non_tensor_batch["uid"],
        batch=data.batch,
        non_tensor_batch=data.non_tensor_batch | {"visual_entropy": entropy.numpy()},
        reward_baselines=None,
    )
    wanted = batches.expected(data, entropy=entropy, num_confidence_buckets=3).advantages
    assert torch.equal(out[0], spread(wanted, data))
    assert torch.equal(out[1], out[0])


def test_it_says_what_a_trainer_did_not_pass():
    data = batches.random_batch(np.random.default_rng(8))
    del data.batch["old_log_probs"]
    with pytest.raises(
        ValueError, match=r"old_log_probs: expected a field of the batch, for algorithm.durian.weights\[2\]"
    ):
        batches.advantage(data)
    with pytest.raises(ValueError, match=r"^visual_entropy: .* got none that is known"):  # without images
        batches.advantage(data, weights=[1, 1, 0])
    assert batches.advantage(data, weights=[1, 0, 0]).batch["advantages"].any()
    del data.non_tensor_batch["uid"]
    with pytest.raises(ValueError, match="index: expected the uid of each response's prompt, got None"):
        batches.advantage(data, weights=[1, 1, 0])


def test_options_that_do_not_exist_are_named():
    data = batches.random_batch(np.random.default_rng(9))
    with pytest.raises(ValueError, match=r"algorithm.durian.wieghts: expected one of estimator, weights, entropy"):
        batches.advantage(data, wieghts=[1, 0, 0])


def test_more_responses_take_no_more_python():
    def calls(prompts):
        data = batches.random_batch(np.random.default_rng(10), prompts=prompts)
        data.non_tensor_batch["uid"] = np.repeat([str(i) for i in range(len(data) // 2 + 1)], 2)[: len(data)]
        count = 0

        def on_call(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        config = batches.with_options(weights=[0.3, 0, 0.7], num_confidence_buckets=2)
        arguments = data.batch["token_level_rewards"], data.batch["response_mask"], config
        rows = {"index": data.non_tensor_batch["uid"], "batch": data.batch}
        gc.disable()  # its callbacks are calls, too
        sys.setprofile(on_call)
        try:
            durian_estimator(*arguments, **rows)
        finally:
            sys.setprofile(None)
            gc.enable()
        return count

    calls(20)
    assert abs(calls(2000) - calls(20)) < 20


def test_verls_metrics_get_ours_for_a_batch_of_ours_and_are_verls_own_for_any_other():
    data = batches.random_batch(np.random.default_rng(11), nan=0)
    size = len(data)
    data.batch["token_level_scores"] = data.batch["token_level_rewards"]
    data.batch["responses"] = torch.ones(size, batches.LENGTH, dtype=torch.int64)
    data.batch["prompts"] = torch.ones(size, 2, dtype=torch.int64)
    data.batch["attention_mask"] = torch.ones(size, 2 + batches.LENGTH, dtype=torch.int64)
    ours, theirs = batches.advantage(data), batches.advantage(data, "grpo")
    found = ray_trainer.compute_data_metrics(batch=ours, use_critic=False)
    assert {name: value for name, value in found.items() if name.startswith("durian/")} == ours.durian_metrics
    assert found["durian/rollouts"] == size
    plain = ray_trainer.compute_data_metrics(batch=theirs, use_critic=False)
    assert set(plain) == set(found) - set(ours.durian_metrics)


def test_an_error_of_the_library_is_not_swallowed(monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("broken")

    monkeypatch.setattr("durian_adv.estimator.durian_components", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        batches.advantage(batches.random_batch(np.random.default_rng(12)))
    monkeypatch.undo()
    assert batches.advantage(batches.random_batch(np.random.default_rng(12))).batch["advantages"].any()


def test_every_other_estimator_gets_the_very_call_it_gets_without_us(monkeypatch):
    seen = []

    def spy(**given):
        seen.append(given)
        return given["token_level_rewards"] * 2, given["token_level_rewards"] * 3

    monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, "spy", spy)
    for function in (ray_trainer.compute_advantage, ray_trainer.compute_advantage.__wrapped__):
        data = batches.random_batch(np.random.default_rng(13), nan=0)
        out = function(data, adv_estimator="spy", gamma=0.5, lam=0.7, config="config")
        assert out is data
        assert not hasattr(out, "durian_metrics")
        assert torch.equal(out.batch["advantages"], data.batch["token_level_rewards"] * 2)
    assert seen[0].keys() == seen[1].keys() == {"token_level_rewards", "response_mask", "config", "index"}


def many(rng, prompts=24, responses=8):
    """Prompts with as many responses each, of 6 tokens."""
    data = batches.random_batch(rng, prompts=prompts * 4, nan=0).select_idxs(np.arange(prompts * responses))
    data.non_tensor_batch["uid"] = np.array([f"p{i % prompts}" for i in range(len(data))], dtype=object)
    data.batch["response_mask"][:] = 1
    return data


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("durian", "difficulty_prior")])
def test_every_estimator_of_the_library_has_its_options(name):
    data = many(np.random.default_rng(14))
    out = batches.advantage(data, eps=0.25, correction=0, estimator_=name)
    functions = {
        "grpo": durian_adv.grpo_advantage,
        **{n: getattr(baselines, f"{n}_advantage") for n in set(ESTIMATORS) - {"durian", "grpo", "difficulty_prior"}},
    }
    chosen = {} if name in ("dr_grpo", "rloo") else {"eps": 0.25, "correction": 0}
    wanted = functions[name](
        batches.rewards_of(data), prompt_index=batches.numbers(data.non_tensor_batch["uid"]), **chosen
    )
    assert torch.equal(out.batch["advantages"], spread(wanted, data))


def test_the_difficulty_prior_and_its_weighting_are_options_too():
    data = many(np.random.default_rng(15))
    out = batches.advantage(data, estimator_="difficulty_prior", weighting="focal")
    index = batches.numbers(data.non_tensor_batch["uid"])
    wanted = weighting.reweighted_advantage(batches.rewards_of(data), weight=weighting.focal, prompt_index=index)
    assert torch.equal(out.batch["advantages"], spread(wanted, data))


def test_a_window_lives_as_long_as_a_trainer():
    rng, window = np.random.default_rng(16), None
    options = {"num_confidence_buckets": 2, "no_signal": "drop", "window": 9, "weights": [0.3, 0, 0.7]}
    config = batches.with_options(**options)
    for step in range(4):  # 3 prompts per step
        data = many(rng, prompts=3)
        copy = DataProto(batch=data.batch.clone(), non_tensor_batch=dict(data.non_tensor_batch))
        out = ray_trainer.compute_advantage(copy, "durian", config=config)
        wanted, window = windowed_components(
            batches.rewards_of(data),
            window=window,
            size=9,
            prompt_index=batches.numbers(data.non_tensor_batch["uid"]),
            confidence=sequence_confidence(data.batch["old_log_probs"]),
            num_confidence_buckets=2,
            no_signal="drop",
            weights=(0.3, 0, 0.7),
        )
        assert torch.equal(out.batch["advantages"], spread(wanted.advantages, data))
        assert out.durian_metrics["durian/window_prompts"] == min(3 * step, 9)
    adapter._estimators.clear()


def test_a_category_is_that_of_a_column_or_else_verls_data_source():
    data = many(np.random.default_rng(17))
    uids = data.non_tensor_batch["uid"]
    source = np.array([f"set {uid[-1]}" for uid in uids], dtype=object)
    kind = np.array([int(uid[1:]) % 2 for uid in uids], dtype=object)
    options = {"weights": [0.2, 0, 0.3, 0.5], "num_confidence_buckets": 2}
    with pytest.raises(ValueError, match=r"^category: expected a column of the dataset, .*weights\[3\] > 0, got none"):
        batches.advantage(data, **options)
    found = {}
    for name, column in (("data_source", source), ("category", kind)):
        data.non_tensor_batch[name] = column
        found[name] = batches.advantage(data, **options).batch["advantages"]
        wanted = durian_components(
            batches.rewards_of(data),
            prompt_index=batches.numbers(uids),
            confidence=sequence_confidence(data.batch["old_log_probs"]),
            category=batches.numbers(column),
            weights=(0.2, 0, 0.3, 0.5),
            num_confidence_buckets=2,
        )
        assert torch.equal(found[name], spread(wanted.advantages, data))
    assert not torch.equal(*found.values())
    # with three weights it is verl's column of another use
    assert "durian/categories" not in batches.advantage(data).durian_metrics


def test_a_response_of_which_no_token_counts_influences_nothing():
    """In verl it votes: a reward of 10 makes this [-0.360, -0.566, -0.566, 0]."""
    data = many(np.random.default_rng(18), prompts=2, responses=4)
    data.batch["token_level_rewards"][:] = 0
    data.batch["token_level_rewards"][:, -1] = torch.tensor([1.0, 0, 0, 0, 0, 0, 10, 0])
    data.batch["response_mask"][6] = 0
    out = batches.advantage(data, weights=[1, 0, 0])
    first = out.batch["advantages"][data.non_tensor_batch["uid"] == "p0"]
    assert first[:, 0].tolist() == pytest.approx([1.155, -0.577, -0.577, 0], abs=1e-3)
    assert not first[3].any()
    assert out.durian_metrics["durian/empty_share"] == 1 / 8


def test_one_minus_infinity_moves_nobody_to_another_bucket_and_is_told():
    data = many(np.random.default_rng(19))
    surest = int(data.batch["old_log_probs"].sum(1).argmax())
    options = {"num_confidence_buckets": 4, "weights": [0, 0, 1]}
    data.batch["old_log_probs"][surest, 2] = -torch.inf
    out = batches.advantage(data, **options)
    mask = data.batch["old_log_probs"].isfinite()
    wanted = durian_components(
        batches.rewards_of(data),
        prompt_index=batches.numbers(data.non_tensor_batch["uid"]),
        confidence=sequence_confidence(data.batch["old_log_probs"], mask),
        **options,
    )
    assert torch.equal(out.batch["advantages"], spread(wanted.advantages, data))
    assert out.durian_metrics["durian/nonfinite_token_share"] == pytest.approx(1 / mask.numel())


def test_what_would_silently_be_grpo_is_refused():
    data = many(np.random.default_rng(20), prompts=3)
    one = data.select_idxs(data.non_tensor_batch["uid"] == "p1")
    with pytest.raises(ValueError, match=r"^prompts: expected several prompts per call, or window > 0"):
        batches.advantage(one)
    assert batches.advantage(one, weights=[1, 0, 0]).batch["advantages"].any()
    data.non_tensor_batch["uid"] = np.array([str(i) for i in range(len(data))], dtype=object)
    with pytest.raises(ValueError, match=r"^prompts: expected ids that the rollouts of a prompt share, got 24 ids"):
        batches.advantage(data)


def test_two_entropies_within_a_prompt_are_refused():
    data = many(np.random.default_rng(21), prompts=3)
    data.non_tensor_batch["visual_entropy"] = np.arange(len(data)) / 2
    with pytest.raises(ValueError, match=r"^visual_entropy: expected one value for all rows of a prompt, got 0 and"):
        batches.advantage(data)
