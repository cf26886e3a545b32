"""On the released experience maker: Durian's advantages in the place of group_norm's, and nothing else changed."""

import copy
import inspect
import json

import pytest
import released
import torch
from openrlhf.models import PolicyLoss
from openrlhf.trainer.ppo_utils import experience_maker

from durian_adv import baselines, durian_components, grpo_advantage, sequence_confidence, weighting
from durian_adv._src.options import ESTIMATORS
from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker
from durian_adv.diagnostics import durian_metrics
from durian_adv.window import windowed_components

PLAIN = '{"weights": [1, 0, 0]}'
SETTINGS = {
    "one by one": {"rollout__micro_batch_size": 1},
    "uneven batches": {"rollout__micro_batch_size": 5},
    "dynamic": {"train__dynamic_batch_enable": True, "rollout__max_tokens_per_gpu": 96, "vllm__num_engines": 1},
    "penalties": {
        "rollout__micro_batch_size": 4,
        "rollout__max_new_tokens": 28,
        "reward__overlong_buffer_len": 20,
        "reward__stop_properly_penalty_coef": 0.25,
    },
    "clipped": {"rollout__micro_batch_size": 4, "reward__clip_range": (-0.5, 0.75)},
    "kl": {"rollout__micro_batch_size": 3, "algo__kl__estimator": "k1"},
}


def truncated(i):
    return i % 3 == 0


def scores_of(batches, reduction="sum"):
    """Rewards and confidences of all rollouts in their order, taken from the batches one by one."""
    rewards = torch.stack(released.by_rollout(batches, "rewards"))
    logprobs, masks = released.by_rollout(batches, "action_log_probs"), released.by_rollout(batches, "action_mask")
    confidence = torch.stack(
        [sequence_confidence(*one, reduction=reduction) for one in zip(logprobs, masks, strict=True)]
    )
    return rewards, confidence


def spread(advantages, batches, kl=0.0):
    """What every token should get, by a loop over the tokens of each rollout in float64."""
    rows = []
    masks, kls = released.by_rollout(batches, "action_mask"), released.by_rollout(batches, "kl")
    for advantage, mask, of_kl in zip(advantages.double(), masks, kls, strict=True):
        last = int(mask.nonzero().max())
        row = torch.zeros(len(mask), dtype=torch.float64)
        for t in range(len(mask)):
            later = sum(-kl * float(of_kl[s]) for s in range(t, len(mask)) if mask[s])
            row[t] = (float(advantage) if t <= last else 0.0) + later
        rows.append(row)
    return rows


@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_plain_weights_are_group_norm_with_exact_zeros_where_it_has_noise(options, setting, kl):
    options(PLAIN)
    args = released.arguments(**SETTINGS[setting])
    # a third of the prompts without signal, at a value that no float holds
    rewards = [0.3] * 8 + torch.rand(16, generator=torch.Generator().manual_seed(1)).tolist()
    answers = released.rollouts(rewards=rewards, truncated=truncated if setting == "penalties" else False)
    ours = released.advantages(DurianExperienceMaker, answers, args, kl)
    theirs = released.advantages(released.OWN, answers, args, kl)
    if setting == "dynamic":
        assert [i for batch in ours for i in batch.index] != list(range(24))
    for name in released.KEYS:
        for i, (a, b) in enumerate(
            zip(released.by_rollout(ours, name), released.by_rollout(theirs, name), strict=True)
        ):
            if i >= 8 or setting == "penalties":
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=f"{name} of rollout {i}")
            elif kl == 0:
                assert not a.any()
    for a, b in zip(ours, theirs, strict=True):
        assert a.info.keys() == b.info.keys()
        assert torch.equal(a.info["group_reward_std"], b.info["group_reward_std"])
        assert torch.equal(a.info["reward"], b.info["reward"])
        assert a.kl is None


def test_group_norm_has_noise_where_ours_is_zero(options):
    # so that the zeros above are not upstream's
    options(PLAIN)
    args = released.arguments(samples=8, prompts=10, rollout__micro_batch_size=8)
    answers = released.rollouts(samples=8, rewards=[k / 999 for k in range(1, 11) for _ in range(8)])
    ours = released.advantages(DurianExperienceMaker, answers, args)
    theirs = released.advantages(released.OWN, answers, args)
    assert max(float(batch.advantages.abs().max()) for batch in theirs) > 0.1
    assert not any(batch.advantages.any() for batch in ours)


@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_advantages_are_the_librarys_on_the_whole_batch(options, setting, kl):
    options('{"weights": [0.5, 0, 0.5], "num_confidence_buckets": 3, "eps": 1e-6, "confidence_reduction": "mean"}')
    args = released.arguments(**SETTINGS[setting])
    answers = released.rollouts(seed=3, truncated=truncated if setting == "penalties" else False)
    made_by = released.maker(DurianExperienceMaker, args, kl)
    batches = released.experiences(made_by, answers)
    before = copy.deepcopy(batches)
    batches = made_by.compute_advantages_and_returns(batches)
    rewards, confidence = scores_of(batches, "mean")
    if setting == "penalties":
        assert not torch.equal(rewards, torch.stack(released.by_rollout(before, "rewards")))
    parts = durian_components(
        rewards.view(-1, 4),
        confidence=confidence.view(-1, 4),
        weights=(0.5, 0, 0.5),
        num_confidence_buckets=3,
    )
    assert parts.advantages.abs().max() > 0.5
    clipped = parts.advantages.flatten().clamp(*args.reward.clip_range)
    expected = spread(clipped, before, kl)
    for name in released.KEYS:
        for found, row in zip(released.by_rollout(batches, name), expected, strict=True):
            torch.testing.assert_close(found.double(), row, atol=2e-6, rtol=1e-6)
    counted = ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")
    metrics = durian_metrics(parts, rewards.view(-1, 4)) | dict.fromkeys((f"durian/{name}" for name in counted), 0.0)
    assert made_by.durian_metrics == pytest.approx(metrics, rel=1e-12)


def test_no_order_changes_a_bit(options):
    options('{"weights": [0.2, 0, 0.8], "num_confidence_buckets": 3}')
    answers = released.rollouts(seed=4)
    plain = released.advantages(DurianExperienceMaker, answers, released.arguments(**SETTINGS["one by one"]))
    for setting in ("uneven batches", "dynamic"):
        other = released.advantages(DurianExperienceMaker, answers, released.arguments(**SETTINGS[setting]))
        pairs = zip(released.by_rollout(plain, "advantages"), released.by_rollout(other, "advantages"), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_rewards_that_are_not_numbers_influence_nothing_and_a_prompt_left_with_one_has_no_signal(options):
    options('{"weights": [0.5, 0, 0.5], "num_confidence_buckets": 2}')
    nan = float("nan")
    rewards = [1.0, nan, 0, 1, nan, nan, nan, 1, 0, 1, 1, 0, nan, nan, nan, nan, float("inf"), 0, 1, 0]
    args = released.arguments(prompts=5, **SETTINGS["dynamic"])
    answers = released.rollouts(rewards=rewards)
    batches = released.advantages(DurianExperienceMaker, answers, args)
    values, confidence = scores_of(batches)
    found = torch.stack([row[0] for row in released.by_rollout(batches, "advantages")])
    keep = values.isfinite()
    alone = durian_components(
        values[keep],
        confidence=confidence[keep],
        prompt_index=torch.arange(20)[keep] // 4,
        weights=(0.5, 0, 0.5),
        num_confidence_buckets=2,
        eps=1e-9,
    )
    torch.testing.assert_close(found[keep], alone.advantages.float(), atol=1e-6, rtol=1e-6)
    assert not found[~keep].any()
    assert found[7] == 0
    assert found[keep].any()
    theirs = released.advantages(released.OWN, answers, args)
    assert all(torch.isnan(row).any() for row in released.by_rollout(theirs, "advantages")[:4])


def test_one_rollout_per_prompt_is_refused(options):
    options(PLAIN)
    args = copy.deepcopy(released.arguments(rollout__micro_batch_size=2))
    args.rollout.n_samples_per_prompt = 1  # which OpenRLHF's main program refuses with group_norm
    with pytest.raises(ValueError, match=r"^prompts: expected ids that the rollouts of a prompt share, got 6 ids"):
        released.advantages(DurianExperienceMaker, released.rollouts(samples=1), args)


def test_one_prompt_per_batch_is_refused_where_others_are_needed(options):
    args = released.arguments(prompts=1, rollout__micro_batch_size=2)
    options("{}")
    with pytest.raises(ValueError, match=r"^prompts: expected several prompts per call, or window > 0"):
        released.advantages(DurianExperienceMaker, released.rollouts(prompts=1), args)
    options('{"window": 8, "num_confidence_buckets": 1}')
    assert released.advantages(DurianExperienceMaker, released.rollouts(prompts=1), args)[0].advantages.any()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a"] * 3 + ["b"] * 5, "n_samples_per_prompt=4 rollouts of each prompt, .* got different prompts among them"),
        (["a"] * 4 + ["b"] * 3, "N a multiple of n_samples_per_prompt=4, got 7 numbers from 0 to 6"),
    ],
)
def test_prompts_with_other_numbers_of_rollouts_are_refused_and_nothing_is_changed(options, prompts, message):
    options(PLAIN)
    made_by = released.maker(DurianExperienceMaker, released.arguments(rollout__micro_batch_size=1))
    answers = [released.response(prompt, float(i % 2), 6, i) for i, prompt in enumerate(prompts)]
    batches = released.experiences(made_by, answers)
    with pytest.raises(ValueError, match=message):
        made_by.compute_advantages_and_returns(batches)
    assert all(batch.advantages is None and batch.kl is not None for batch in batches)


def test_rollouts_that_are_not_numbered_one_by_one_are_refused(options):
    options(PLAIN)
    made_by = released.maker(DurianExperienceMaker, released.arguments(rollout__micro_batch_size=1))
    batches = released.experiences(made_by, released.rollouts())
    batches[3].index = [4]
    with pytest.raises(ValueError, match=r"^index: expected 0 to N - 1 in any order"):
        made_by.compute_advantages_and_returns(batches)


def test_the_same_prompt_twice_is_two_prompts_as_in_group_norm(options):
    options(PLAIN)
    answers = released.rollouts(prompts=2, prompt="the same")
    args = released.arguments(prompts=2, rollout__micro_batch_size=3)
    ours, theirs = (released.advantages(kind, answers, args) for kind in (DurianExperienceMaker, released.OWN))
    for a, b in zip(released.by_rollout(ours, "advantages"), released.by_rollout(theirs, "advantages"), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_in_the_loss_an_advantage_reaches_all_tokens_of_its_response_and_no_other(options):
    options(PLAIN)
    args = released.arguments(samples=2, prompts=2, rollout__micro_batch_size=4)
    # two turns each, with an answer of the environment between them
    turns = [[(3, 5), (7, 9)], [(2, 6), (8, 12)], [(4, 5), (6, 7)], [(3, 4), (5, 11)]]
    answers = [
        released.response(f"prompt {i // 2}", float(i % 2), length, i, prompt_length=0, ranges=turns[i])
        for i, length in enumerate((9, 12, 8, 11))
    ]
    (batch,) = released.advantages(DurianExperienceMaker, answers, args)
    logprobs = batch.action_log_probs.clone().requires_grad_()
    sizes = {"batch_num_tokens": batch.action_mask.sum(), "global_batch_size": torch.tensor(4)}
    taken = inspect.signature(PolicyLoss.forward).parameters  # OpenRLHF 0.10.2 takes none of them
    loss = PolicyLoss()(
        logprobs,
        batch.action_log_probs,
        batch.advantages,
        action_mask=batch.action_mask,
        **{name: size for name, size in sizes.items() if name in taken},
    )[0]
    loss.backward()
    sign = torch.tensor([-1.0, 1, -1, 1])[:, None]
    assert torch.equal(-logprobs.grad.sign(), batch.action_mask * sign)
    after = torch.arange(batch.action_mask.shape[1]) > torch.tensor([t[-1][1] - 2 for t in turns])[:, None]
    assert not batch.advantages[after].any()


def test_errors_of_the_library_are_not_swallowed_and_openrlhf_is_left_as_it_was(options, monkeypatch):
    options('{"weights": [1, 0, 0]}')
    own = experience_maker.compute_reward

    def broken(*args, **kwargs):
        raise ArithmeticError("broken")

    monkeypatch.setattr("durian_adv.estimator.durian_components", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        released.advantages(DurianExperienceMaker, released.rollouts(), released.arguments())
    assert experience_maker.compute_reward is own
    monkeypatch.undo()
    options(PLAIN)
    released.advantages(DurianExperienceMaker, released.rollouts(), released.arguments())
    assert experience_maker.compute_reward is own


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("durian", "difficulty_prior")])
def test_every_estimator_of_the_library_has_its_options(options, name):
    options(json.dumps({"estimator": name, "eps": 0.25, "correction": 0}))
    args = released.arguments(rollout__micro_batch_size=5)
    batches = released.advantages(DurianExperienceMaker, released.rollouts(seed=5), args)
    found = torch.stack([row[0] for row in released.by_rollout(batches, "advantages")]).view(-1, 4)
    rewards = torch.stack(released.by_rollout(batches, "rewards")).view(-1, 4)
    function = grpo_advantage if name == "grpo" else getattr(baselines, f"{name}_advantage")
    right = function(rewards, **({} if name in ("dr_grpo", "rloo") else {"eps": 0.25, "correction": 0}))
    torch.testing.assert_close(found, right.clamp(*args.reward.clip_range), atol=1e-6, rtol=1e-6)
    assert found.any()


def test_the_difficulty_prior_and_its_weighting_are_options_too(options):
    options('{"estimator": "difficulty_prior", "weighting": "focal", "success_threshold": 0.4}')
    batches = released.advantages(
        DurianExperienceMaker, released.rollouts(seed=6), released.arguments(rollout__micro_batch_size=5)
    )
    found = torch.stack([row[0] for row in released.by_rollout(batches, "advantages")]).view(-1, 4)
    rewards = torch.stack(released.by_rollout(batches, "rewards")).view(-1, 4)
    right = weighting.reweighted_advantage(rewards, weight=weighting.focal, success_threshold=0.4)
    torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-6)
    assert found.any()


def test_a_window_goes_from_batch_to_batch(options):
    options('{"window": 8, "weights": [0.3, 0, 0.7], "num_confidence_buckets": 2, "no_signal": "drop", "eps": 1e-6}')
    args = released.arguments(rollout__micro_batch_size=5)
    made_by, window = released.maker(DurianExperienceMaker, args), None
    for seed in range(3):
        batches = made_by.compute_advantages_and_returns(released.experiences(made_by, released.rollouts(seed=seed)))
        rewards, confidence = scores_of(batches)
        recent = 0 if window is None else len(window.mean)
        parts, window = windowed_components(
            rewards.view(-1, 4),
            window=window,
            size=8,
            confidence=confidence.view(-1, 4),
            weights=(0.3, 0, 0.7),
            num_confidence_buckets=2,
            no_signal="drop",
        )
        found = torch.stack([row[0] for row in released.by_rollout(batches, "advantages")])
        torch.testing.assert_close(found, parts.advantages.flatten(), atol=1e-6, rtol=1e-6)
        assert made_by.durian_metrics["durian/window_prompts"] == recent


def test_a_category_is_a_number_that_the_reward_function_returns(options):
    options('{"weights": [0.25, 0, 0, 0.75]}')
    args = released.arguments(rollout__micro_batch_size=5)
    answers = released.rollouts(seed=7, extra_logs=lambda i: {"category": float(i // 4 % 2)})
    batches = released.advantages(DurianExperienceMaker, answers, args)
    rewards = torch.stack(released.by_rollout(batches, "rewards")).view(-1, 4)
    category = torch.arange(6) % 2
    parts = durian_components(rewards, category=category, weights=(0.25, 0, 0, 0.75), eps=1e-9)
    found = torch.stack([row[0] for row in released.by_rollout(batches, "advantages")]).view(-1, 4)
    torch.testing.assert_close(found, parts.advantages, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^info\['category'\]: expected a number in extra_logs .*weights\[3\] > 0"):
        released.advantages(DurianExperienceMaker, released.rollouts(seed=7), args)


def test_a_response_of_which_no_token_counts_influences_nothing(options):
    """In OpenRLHF it votes: a reward of 10 makes this [-0.360, -0.566, -0.566, 0]."""
    options(PLAIN)
    made_by = released.maker(DurianExperienceMaker, released.arguments(prompts=2, rollout__micro_batch_size=4))
    batches = released.experiences(made_by, released.rollouts(prompts=2, rewards=[1.0, 0, 0, 10, 1, 0, 0, 1]))
    batches[0].action_mask[3] = 0
    batches = made_by.compute_advantages_and_returns(batches)
    first = batches[0].advantages
    assert first[:3, 0].tolist() == pytest.approx([1.155, -0.577, -0.577], abs=1e-3)
    assert not first[3].any()
    assert made_by.durian_metrics["durian/empty_share"] == 1 / 8


def test_one_minus_infinity_moves_nobody_to_another_bucket_and_is_told(options):
    options('{"weights": [0, 0, 1], "num_confidence_buckets": 3, "eps": 1e-6}')
    made_by = released.maker(DurianExperienceMaker, released.arguments(rollout__micro_batch_size=24))
    (batch,) = released.experiences(made_by, released.rollouts(seed=8))
    token = int(batch.action_mask[0].nonzero()[0])
    mask = batch.action_mask.bool()
    tokens = int(mask.sum())
    batch.action_log_probs[0, token] = -torch.inf
    logprobs, rewards = batch.action_log_probs.clone(), batch.rewards.clone()
    (batch,) = made_by.compute_advantages_and_returns([batch])
    confidence = sequence_confidence(logprobs, mask & logprobs.isfinite())
    parts = durian_components(
        rewards.view(-1, 4), confidence=confidence.view(-1, 4), weights=(0, 0, 1), num_confidence_buckets=3
    )
    torch.testing.assert_close(batch.advantages[:, 0], parts.advantages.flatten(), atol=1e-6, rtol=1e-6)
    assert made_by.durian_metrics["durian/nonfinite_token_share"] == pytest.approx(1 / tokens)
