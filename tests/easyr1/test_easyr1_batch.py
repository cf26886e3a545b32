"""A ``DataProto`` gets GRPO's advantages with weights (1, 0, 0), and else those of the library's own call."""

import re

import batches
import numpy as np
import pytest
import torch
import verl
from conftest import EASYR1
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durian_adv import baselines, durian_components, grpo_advantage, sequence_confidence, weighting
from durian_adv._src.options import ESTIMATORS
from durian_adv.adapters.easyr1.batch import put_advantages
from durian_adv.diagnostics import durian_metrics
from durian_adv.estimator import AdvantageEstimator
from durian_adv.window import windowed_components

COUNTED = dict.fromkeys(
    (f"durian/{name}" for name in ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")), 0.0
)
GRPO = AdvantageEstimator(weights=(1, 0, 0))
PAPER = [[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def of_prompts(data):
    """Advantages of the first token of each row, in the order of the rows of each prompt."""
    return data.batch["advantages"][:, 0]


def check_grpo(grpo, data):
    """Require the trainer's own advantages within 1e-6, exact zeros where prompts have no signal.

    Where they differ by more, it is the trainer's float32: ours are then those of float64. Tell whether none does.
    """
    expected = grpo(data)
    put_advantages(data, GRPO)
    signal = {uid: len(set(group)) > 1 for uid, group in groups(data).items()}
    has_signal = torch.tensor([signal[uid] for uid in data.non_tensor_batch["uid"]])
    got = data.batch["advantages"]
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    exact = in_float64(data)
    size = exact[has_signal].abs().clamp(min=1)
    theirs = (got - expected)[has_signal].abs() <= 1e-6 * size
    assert bool((theirs | ((got - exact)[has_signal].abs() <= 2e-7 * size)).all())
    assert not got[~has_signal].any()
    assert torch.equal(data.batch["returns"], got)
    return bool(theirs.all())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("prompts", "rollouts"), [(64, 8), (512, 8)])
def test_with_the_weight_on_grpo_alone_it_is_the_trainers_own_grpo(grpo, prompts, rollouts, shuffle):
    assert check_grpo(grpo, batches.batch(batches.binary(prompts, rollouts), shuffle=shuffle))


REWARDS = st.sampled_from([0.0, 0.1, 0.25, 0.9, 1.0, -2.0])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(REWARDS, min_size=2, max_size=9), min_size=1, max_size=12), st.integers(0, 99))
def test_so_it_is_for_any_number_of_rollouts_a_prompt_in_any_order(grpo, rewards, seed):
    check_grpo(grpo, batches.batch(rewards, seed=seed))


def in_float64(data):
    """GRPO of a batch by its formula: ``(N, T)``."""
    out = torch.zeros(data.batch["response_mask"].shape, dtype=torch.float64)
    rewards, uids = data.batch["token_level_rewards"].double().sum(-1), data.non_tensor_batch["uid"]
    for uid in set(uids):
        rows = torch.from_numpy(uids == uid)
        out[rows] = ((rewards[rows] - rewards[rows].mean()) / (rewards[rows].std() + 1e-6))[:, None]
    return out * data.batch["response_mask"]


def groups(data):
    found = {}
    for uid, reward in zip(data.non_tensor_batch["uid"], data.batch["token_level_rewards"].sum(-1), strict=True):
        found.setdefault(uid, []).append(reward.item())
    return found


def test_prompts_without_signal_are_zero_where_the_trainer_has_noise(grpo):
    data = batches.batch([[0.9] * 8 for _ in range(512)])
    assert grpo(data).abs().max() > 0.01
    put_advantages(data, GRPO)
    assert not data.batch["advantages"].any()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.7), (0, 1, 0), (0, 0, 1)])
def test_with_other_weights_it_is_the_librarys_call_on_the_batch(weights, reduction):
    entropy = np.random.default_rng(3).normal(4, 1, 96).tolist()
    data = batches.batch(batches.binary(96, 8), entropy=entropy, images=True)
    options = AdvantageEstimator(weights=weights, confidence_reduction=reduction)
    metrics = put_advantages(data, options)
    mask, ids = data.batch["response_mask"], data.non_tensor_batch["uid"].tolist()
    given = {
        "visual_entropy": torch.tensor(data.non_tensor_batch["visual_entropy"].tolist(), dtype=torch.float64),
        "confidence": sequence_confidence(data.batch["old_log_probs"], mask, reduction=reduction),
        "prompt_index": torch.tensor([sorted(set(ids)).index(i) for i in ids]),
    }
    for name, weight in zip(("visual_entropy", "confidence"), weights[1:], strict=True):
        given |= {name: None} if weight == 0 else {}
    rewards = data.batch["token_level_rewards"].sum(-1)
    parts = durian_components(rewards, weights=weights, **given)
    assert torch.equal(data.batch["advantages"], parts.advantages[:, None] * mask)
    right = durian_metrics(parts, rewards, prompt_index=given["prompt_index"])
    assert metrics == right | COUNTED
    assert data.batch["advantages"].any()


def test_the_example_worked_by_hand():
    data = batches.batch(PAPER, entropy=[1, 2, 3, 4], images=True, tokens=1, shuffle=False)
    data.batch["old_log_probs"] = torch.tensor([-3.0, -1, -4, -2]).repeat_interleave(4)[:, None]
    options = {"weights": (0.6, 0.2, 0.2), "num_confidence_buckets": 2}
    put_advantages(data, AdvantageEstimator(**options))
    rows = [[0.4935] * 3 + [-1.4806], [0.9289] * 2 + [-0.9289] * 2, [-0.4901] * 3 + [1.4704], [0.0] * 4]
    torch.testing.assert_close(data.batch["advantages"].view(4, 4), torch.tensor(rows), atol=1e-4, rtol=0)


def test_an_advantage_reaches_all_tokens_of_its_response_and_no_other():
    data = batches.batch(batches.binary(32, 4), entropy=range(32))
    put_advantages(data, AdvantageEstimator())
    advantages, mask = data.batch["advantages"], data.batch["response_mask"].bool()
    assert not advantages[~mask].any()
    first = advantages[:, :1].expand_as(advantages)
    assert torch.equal(advantages[mask], first[mask])


def test_what_stands_after_a_response_does_not_count():
    rewards, options = batches.binary(32, 4), AdvantageEstimator(num_confidence_buckets=4)
    clean, spoiled = batches.batch(rewards), batches.batch(rewards)
    spoiled.batch["old_log_probs"][~spoiled.batch["response_mask"].bool()] = torch.nan
    for data in (clean, spoiled):
        put_advantages(data, options)
    assert torch.equal(clean.batch["advantages"], spoiled.batch["advantages"])


def test_the_order_of_rows_does_not_exist():
    rewards, entropy = batches.binary(48, 6), np.random.default_rng(1).normal(size=48).tolist()
    data = batches.batch(rewards, entropy=entropy)
    put_advantages(data, AdvantageEstimator())
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    moved = batches.batch(rewards, entropy=entropy)
    moved.reorder(order)
    put_advantages(moved, AdvantageEstimator())
    assert torch.equal(moved.batch["advantages"], data.batch["advantages"][order])


@pytest.mark.parametrize("invalid", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_influences_nothing(invalid):
    rewards = [[1.0, 0, 0, invalid], [1, 1, 0, 0], [invalid] * 4, [0, 1, 0, 1]]
    put_advantages(with_invalid := batches.batch(rewards, shuffle=False), GRPO)
    spoiled = with_invalid.batch["token_level_rewards"].sum(-1).isfinite().logical_not()
    assert spoiled.sum() == 5
    assert not with_invalid.batch["advantages"][spoiled].any()
    put_advantages(without := batches.batch([[1.0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]], shuffle=False), GRPO)
    assert torch.equal(of_prompts(with_invalid)[~spoiled], of_prompts(without))


def test_a_prompt_with_one_rollout_has_no_advantage():
    data = batches.batch([[1.0], [0.0, 1.0], [0.5]], shuffle=False)
    metrics = put_advantages(data, AdvantageEstimator(num_confidence_buckets=1))
    assert of_prompts(data)[[0, 3]].tolist() == [0, 0]
    assert of_prompts(data)[1:3].abs().min() > 0.5
    assert metrics["durian/no_signal_share"] == pytest.approx(2 / 3)


def test_prompts_are_told_apart_by_their_uid_and_not_by_their_place():
    interleaved = batches.batch([[1.0, 0.0], [0.0, 1.0]], shuffle=False)
    interleaved.reorder(torch.tensor([0, 2, 1, 3]))
    put_advantages(interleaved, GRPO)
    signs = of_prompts(interleaved).sign().tolist()
    assert signs == [1, -1, -1, 1]


def test_a_prompt_without_an_image_has_none_or_nan_in_the_column():
    rewards = batches.binary(24, 4)
    entropy = [None if s % 3 == 0 else float(s) for s in range(24)]
    data = batches.batch(rewards, entropy=entropy, images=True)
    metrics = put_advantages(data, AdvantageEstimator(weights=(0, 1, 0)))
    assert metrics["durian/visual_entropy_missing_share"] == pytest.approx(1 / 3)
    other = batches.batch(rewards, entropy=[float("nan") if e is None else e for e in entropy], images=True)
    put_advantages(other, AdvantageEstimator(weights=(0, 1, 0)))
    assert torch.equal(data.batch["advantages"], other.batch["advantages"])


def test_images_without_the_column_are_refused_where_it_counts():
    data = batches.batch(PAPER, images=True)
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a column .* durian.weights\[1\] = 0.2 and images"):
        put_advantages(data, AdvantageEstimator())
    put_advantages(data, AdvantageEstimator(weights=(1, 0, 1)))
    text = batches.batch(PAPER)
    metrics = put_advantages(text, AdvantageEstimator(num_confidence_buckets=2))
    assert "durian/visual_entropy_mean" not in metrics  # no images: the component is left out


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_images_without_any_number_in_the_column_are_refused_where_it_counts(missing):
    data = batches.batch(PAPER, entropy=[missing] * 4, images=True)
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a number for prompts with images"):
        put_advantages(data, AdvantageEstimator())
    put_advantages(data, AdvantageEstimator(weights=(1, 0, 1)))
    text = batches.batch(PAPER, entropy=[missing] * 4)  # a batch without an image, of a dataset that has some
    text.non_tensor_batch["multi_modal_data"] = np.array([{"images": []}] * 16, dtype=object)
    put_advantages(text, AdvantageEstimator())
    text.non_tensor_batch["multi_modal_data"][3] = {"videos": ["a.mp4"]}
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a number for prompts with images"):
        put_advantages(text, AdvantageEstimator())


@pytest.mark.parametrize("bad", [["low", "high"], [[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0, 3.0]]])
def test_a_column_that_is_not_one_number_a_prompt_is_refused(bad):
    rewards = [[1.0, 0.0], [0.0, 1.0]]
    data = batches.batch(rewards, shuffle=False)
    column = np.empty(4, dtype=object)
    for row in range(4):
        column[row] = bad[row // 2]
    data.non_tensor_batch["visual_entropy"] = np.array(column.tolist(), dtype=object)
    with pytest.raises(ValueError, match=r"^visual_entropy: expected"):
        put_advantages(data, AdvantageEstimator())


def test_the_trainers_rewards_are_not_written_to():
    data = batches.batch(batches.binary(16, 4), entropy=range(16))
    before = {name: value.clone() for name, value in data.batch.items()}
    put_advantages(data, AdvantageEstimator(num_confidence_buckets=2))
    for name, value in before.items():
        assert torch.equal(data.batch[name], value), name
    assert set(data.batch.keys()) - set(before) == {"advantages", "returns"}


def test_every_option_reaches_the_library():
    given = {"eps": 0.5, "entropy_quantiles": (0.5,), "num_confidence_buckets": 3, "success_threshold": 2.0}
    given |= {"correction": 0, "no_signal": "drop", "estimator": "batch_std", "confidence_reduction": "mean"}
    entropy = np.random.default_rng(1).normal(size=48).tolist()

    def outcome(options):
        data = batches.batch(batches.binary(48, 6), entropy=entropy)
        metrics = put_advantages(data, options)
        return data.batch["advantages"], metrics

    advantages, metrics = outcome(AdvantageEstimator())
    for name, value in given.items():
        other, others = outcome(AdvantageEstimator(**{name: value}))
        assert not torch.equal(other, advantages) or others != metrics, name


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("durian", "difficulty_prior")])
def test_every_estimator_of_the_library_has_its_options(name):
    chosen = {} if name in ("dr_grpo", "rloo") else {"eps": 0.25, "correction": 0}
    data = batches.batch(batches.binary(16, 4), shuffle=False)
    put_advantages(data, AdvantageEstimator(estimator=name, **{"eps": 0.25, "correction": 0}))
    function = grpo_advantage if name == "grpo" else getattr(baselines, f"{name}_advantage")
    right = function(data.batch["token_level_rewards"].sum(-1).view(16, 4), **chosen)
    assert torch.equal(of_prompts(data), right.flatten())
    assert right.any()


def test_the_difficulty_prior_and_its_weighting_are_options_too():
    data = batches.batch(batches.binary(16, 4), shuffle=False)
    put_advantages(data, AdvantageEstimator(estimator="difficulty_prior", weighting="focal"))
    rewards = data.batch["token_level_rewards"].sum(-1).view(16, 4)
    right = weighting.reweighted_advantage(rewards, weight=weighting.focal)
    assert torch.equal(of_prompts(data), right.flatten())


def test_a_window_goes_from_batch_to_batch():
    estimator = AdvantageEstimator(window=9, num_confidence_buckets=2)
    window = None
    for seed in range(4):
        data = batches.batch(batches.binary(4, 4, seed=seed), seed=seed, shuffle=False)
        put_advantages(data, estimator)
        uids = data.non_tensor_batch["uid"]
        parts, window = windowed_components(
            data.batch["token_level_rewards"].sum(-1),
            window=window,
            size=9,
            prompt_index=torch.from_numpy(np.unique(uids.astype(str), return_inverse=True)[1]),
            confidence=sequence_confidence(data.batch["old_log_probs"], data.batch["response_mask"]),
            num_confidence_buckets=2,
        )
        assert torch.equal(of_prompts(data), parts.advantages)


def test_a_column_of_categories_counts_with_a_fourth_weight():
    estimator = AdvantageEstimator(weights=(0.5, 0, 0, 0.5))
    data = batches.batch(batches.binary(16, 4), shuffle=False)
    with pytest.raises(ValueError, match=r"^category: expected a column of the dataset, for durian.weights\[3\] = 0.5"):
        put_advantages(data, estimator)
    kinds = np.array([f"kind {row // 4 % 3}" for row in range(64)], dtype=object)
    data.non_tensor_batch["category"] = kinds
    put_advantages(data, estimator)
    right = durian_components(
        data.batch["token_level_rewards"].sum(-1).view(16, 4),
        category=torch.arange(16) % 3,
        weights=(0.5, 0, 0, 0.5),
    )
    assert torch.equal(of_prompts(data), right.advantages.flatten())


def test_a_response_of_which_no_token_counts_influences_nothing():
    """In EasyR1 it votes: a reward of 10 makes this [-0.360, -0.566, -0.566, 0]."""
    data = batches.batch([[1.0, 0, 0, 10], [1, 0, 0, 1]], shuffle=False)
    data.batch["response_mask"][3] = 0
    metrics = put_advantages(data, GRPO)
    assert of_prompts(data)[:4].tolist() == pytest.approx([1.155, -0.577, -0.577, 0], abs=1e-3)
    assert not data.batch["advantages"][3].any()
    assert metrics["durian/empty_share"] == 1 / 8


def test_one_minus_infinity_moves_nobody_to_another_bucket_and_is_told():
    data = batches.batch(batches.binary(24, 8), shuffle=False)
    data.batch["old_log_probs"][0, 0] = -torch.inf
    metrics = put_advantages(data, AdvantageEstimator(weights=(0, 0, 1), num_confidence_buckets=4))
    mask = data.batch["response_mask"].bool()
    finite = mask & data.batch["old_log_probs"].isfinite()
    right = durian_components(
        data.batch["token_level_rewards"].sum(-1).view(24, 8),
        confidence=sequence_confidence(data.batch["old_log_probs"], finite).view(24, 8),
        weights=(0, 0, 1),
        num_confidence_buckets=4,
    )
    assert torch.equal(of_prompts(data), right.advantages.flatten())
    assert metrics["durian/nonfinite_token_share"] == pytest.approx(1 / int(mask.sum()))


def test_what_would_silently_be_grpo_is_refused():
    with pytest.raises(ValueError, match=r"^prompts: expected several prompts per call, or window > 0"):
        put_advantages(batches.batch([[1.0, 0, 1]]), AdvantageEstimator())
    put_advantages(batches.batch([[1.0, 0, 1]]), GRPO)
    with pytest.raises(ValueError, match=r"^prompts: expected ids that the rollouts of a prompt share, got 3 ids"):
        put_advantages(batches.batch([[1.0], [0.0], [1.0]]), AdvantageEstimator())


def test_two_entropies_within_a_prompt_are_refused():
    data = batches.batch(batches.binary(4, 2), entropy=range(4), shuffle=False)
    data.non_tensor_batch["visual_entropy"][1] = 0.5
    with pytest.raises(
        ValueError, match=r"^visual_entropy: expected one value for all rows of a prompt, got 0 and 0.5"
    ):
        put_advantages(data, AdvantageEstimator())


@pytest.mark.skipif(EASYR1, reason="it is EasyR1")
def test_upstream_verl_is_refused_by_name():
    found = re.escape(verl.__version__)
    with pytest.raises(ImportError, match=rf"verl {found} does not fit .* EasyR1 .* upstream verl"):
        import durian_adv.adapters.easyr1.trainer  # noqa: F401
