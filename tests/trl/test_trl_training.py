"""Real training on tiny models of every family: parameters move, and the advantages are the library's."""

import math

import pandas
import pytest
import recorded
import tiny
import torch
from trl import GRPOConfig

from durian_adv import durian_advantage, eigen_entropy, sequence_confidence
from durian_adv.diagnostics import durian_metrics


def expected_entropy(model, processor, images, kind="patches"):
    """The entropy of some images, taken from the model's parts without a hook: the mean over them."""
    model = getattr(model, "base_model", model)
    inner = model.model if hasattr(model, "model") else model
    inner = inner.model if hasattr(inner, "model") else inner
    values = []
    for image in images:
        pixels = processor.image_processor(images=[image], return_tensors="pt")
        with torch.no_grad():
            values.append(eigen_entropy(features(inner, pixels, kind)).item())
    return sum(values) / len(values)


def features(inner, pixels, kind):
    if hasattr(inner, "visual"):
        kept = []
        hook = inner.visual.merger.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        kept_after = inner.visual.merger.register_forward_hook(lambda _, __, out: kept.append(out))
        inner.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])
        hook.remove(), kept_after.remove()
        return kept[0] if kind == "patches" else kept[1]
    if hasattr(inner, "multi_modal_projector"):  # LLaVA: the last layer but one, without the class token
        states = inner.vision_tower(pixels["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        return states[0] if kind == "patches" else inner.multi_modal_projector(states)[0]
    if "pixel_attention_mask" in pixels:
        mask = pixels["pixel_attention_mask"][0]
        real = mask.unfold(1, 14, 14).unfold(2, 14, 14).sum((-1, -2)) > 0
    states = inner.vision_model(pixel_values=pixels["pixel_values"][0], patch_attention_mask=real).last_hidden_state
    return states[0][real.flatten()] if kind == "patches" else inner.connector(states)[0]


def expected_logprobs(trainer, output):
    """The log-probabilities of the tokens of each completion, from one plain forward of each alone."""
    model, out = trainer.model, []
    for i in range(len(output["completion_ids"])):
        ids = torch.cat([output["prompt_ids"][i], output["completion_ids"][i]])
        real = torch.cat([output["prompt_mask"][i], output["completion_mask"][i]]).bool()
        pixels = own_images(output, i)
        with torch.no_grad():
            logits = model(input_ids=ids[real][None], attention_mask=torch.ones_like(ids[real])[None], **pixels).logits
        count = int(output["completion_mask"][i].sum())
        logprobs = torch.log_softmax(logits[0, -count - 1 : -1] / trainer.temperature, -1)
        out.append(logprobs.gather(1, ids[real][-count:, None])[:, 0])
    return out


def expected_confidence(trainer, output, reduction="sum"):
    """The confidence of each completion."""
    return torch.stack([sequence_confidence(x, reduction=reduction) for x in expected_logprobs(trainer, output)])


def own_images(output, i):
    if "pixel_values" not in output:
        return {}
    images = output["num_images"]
    if "image_grid_thw" in output:
        grids = torch.split(output["image_grid_thw"], images)
        pixels = torch.split(output["pixel_values"], [int(g.prod(-1).sum()) for g in grids])
        kinds = output.get("mm_token_type_ids")
        real = torch.cat([output["prompt_mask"][i], output["completion_mask"][i]]).bool()
        more = {} if kinds is None else {"mm_token_type_ids": kinds[i][real][None]}
        return {"pixel_values": pixels[i], "image_grid_thw": grids[i], **more}
    if "pixel_attention_mask" in output:
        return {name: output[name][i : i + 1] for name in ("pixel_values", "pixel_attention_mask")}
    return {"pixel_values": torch.split(output["pixel_values"], images)[i]}


@pytest.mark.parametrize("family", tiny.BUILDERS)
def test_every_family_trains_with_the_advantages_of_the_library(make, family):
    trainer = make(family)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    changed = recorded.moved(trainer, trainer.train)
    assert len(changed) > len(start) / 2
    assert len(trainer.batches) == 2

    trainer.model.load_state_dict(start)  # the policy of the first batch
    batch = trainer.batches[0]
    rewards = torch.tensor([tiny.letters([c])[0] for c in completions(trainer, batch)]).view(4, 4)
    assert torch.equal(batch["per_func"][:, 0], rewards.flatten())
    entropy = None
    if family != "qwen_text":
        images = [example["image"] for example in batch["inputs"][::4]]
        entropy = torch.tensor([expected_entropy(trainer.model, trainer.processing_class, [i]) for i in images])
        assert entropy.max() - entropy.min() > 0.1
        torch.testing.assert_close(batch["entropy"].float(), entropy, atol=1e-4, rtol=0)
    confidence = expected_confidence(trainer, batch["output"]).view(4, 4)
    torch.testing.assert_close(batch["confidence"].float(), confidence, atol=1e-3, rtol=0)

    advantages = durian_advantage(
        rewards,
        visual_entropy=entropy,
        confidence=confidence,
        num_confidence_buckets=2,
        entropy_quantiles=(0.5,),
        eps=1e-4,
    )
    torch.testing.assert_close(batch["output"]["advantages"], advantages.flatten(), atol=1e-6, rtol=0)
    assert batch["table"] == batch["output"]["advantages"].tolist()
    assert not torch.equal(batch["of_trl"], advantages.flatten())


def completions(trainer, batch):
    """The texts of a batch."""
    ids, mask = batch["output"]["completion_ids"], batch["output"]["completion_mask"].bool()
    return [trainer.processing_class.decode(i[m], skip_special_tokens=True) for i, m in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("family", ["qwen25vl", "qwen_text"])
def test_weights_1_0_0_are_trls_own_grpo_where_there_is_signal_and_zero_where_there_is_none(make, family):
    def right(completions, **_):
        first = [ord(t[0]) if (t := c if isinstance(c, str) else c[0]["content"]) else 0 for c in completions]
        return [0.9 if i < 4 or letter % 2 else 0.1 for i, letter in enumerate(first)]

    trainer = make(family, reward_funcs=right, durian_weights=[1.0, 0.0, 0.0])
    trainer.train()
    signal = 0
    for batch in trainer.batches:
        assert batch["entropy"] is None
        assert batch["confidence"] is None
        assert batch["forwards"] == 0  # a score without weight costs nothing
        rewards = batch["per_func"].view(4, 4)
        ours, theirs = batch["output"]["advantages"].view(4, 4), batch["of_trl"].view(4, 4)
        for row, own, their in zip(rewards, ours, theirs, strict=True):
            if row.min() == row.max():
                assert not own.any()
            else:
                signal += 1
                assert ((own - their).abs() <= 1e-6 * their.abs().clamp(min=1)).all()
        assert not ours[0].any()
    assert signal


def test_rewards_are_the_weighted_sum_and_what_nobody_scores_has_no_advantage(make):
    def some(completions, **_):
        return [None if i % 4 == 1 else i % 3 for i in range(len(completions))]

    def others(completions, **_):
        return [None if i in (1, 4, 5, 6, 7) else i % 2 for i in range(len(completions))]

    trainer = make(reward_funcs=[some, others], reward_weights=[0.1, 0.9], max_steps=1)
    trainer.train()
    (batch,) = trainer.batches
    nan = math.nan
    rewards = torch.tensor(
        [
            0.1 * (a or 0) + 0.9 * (b or 0) if (a, b) != (None, None) else nan
            for a, b in zip(some([0] * 16), others([0] * 16), strict=True)
        ]
    ).view(4, 4)
    assert rewards.isnan().nonzero().tolist() == [[0, 1], [1, 1]]
    expected = durian_advantage(
        rewards,
        visual_entropy=batch["entropy"],
        confidence=batch["confidence"],
        num_confidence_buckets=2,
        entropy_quantiles=(0.5,),
        eps=1e-4,
    )
    ours = batch["output"]["advantages"].view(4, 4)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert ours[0, 1] == 0
    assert ours[1, 1] == 0
    assert batch["metrics"]["durian/rollouts"] == 14


def test_a_prompt_whose_first_completion_has_no_reward_still_has_its_entropy(make):
    def but_the_first(completions, **_):
        return [None if i % 4 == 0 else i % 3 for i in range(len(completions))]

    trainer = make(reward_funcs=but_the_first, max_steps=1)
    trainer.train()
    (batch,) = trainer.batches
    assert batch["metrics"]["durian/visual_entropy_missing_share"] == 0
    assert batch["metrics"]["durian/entropy_bucket_0_prompts"] == 2


def test_the_metrics_are_those_of_the_library_and_reach_the_log(make):
    trainer = make()
    trainer.train()
    batch, logged = trainer.batches[0], trainer.state.log_history[0]
    from durian_adv import durian_components

    rewards = batch["per_func"].view(4, 4)
    parts = durian_components(
        rewards,
        visual_entropy=batch["entropy"],
        confidence=batch["confidence"],
        num_confidence_buckets=2,
        entropy_quantiles=(0.5,),
        eps=1e-4,
    )
    metrics = durian_metrics(parts, rewards)
    # and what the estimator counts
    counted = ("unscored_share", "empty_share", "nonfinite_token_share", "window_prompts")
    assert batch["metrics"] == metrics | dict.fromkeys((f"durian/{name}" for name in counted), 0)
    for name, value in metrics.items():
        assert logged[name] == pytest.approx(value), name
    for name in ("extreme_ratio", "no_signal_share", "perceptual_std_0", "reasoning_std_1", "moved_from_grpo"):
        assert f"durian/{name}" in logged
    for score in ("visual_entropy", "confidence"):
        assert {f"durian/{score}_mean", f"durian/{score}_std"} <= set(logged)


def test_the_success_threshold_is_that_of_the_configuration(make):
    trainer = make(reward_funcs=lambda completions, **_: [0.2, 0, 0, 0] * 4, durian_success_threshold=0.1, max_steps=1)
    trainer.train()
    assert trainer.batches[0]["metrics"]["durian/extreme_failure"] == 4


def test_evaluation_may_have_another_number_of_completions_and_the_table_on_disk_shows_what_was_used(make, tmp_path):
    trainer = make(
        num_generations_eval=2,
        per_device_eval_batch_size=6,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        log_completions=True,
        arguments={"eval_dataset": tiny.dataset(7)},  # 14 completions: the last batch is not full
    )
    trainer.train()
    train, *evaluations = trainer.batches
    assert train["training"]
    assert [len(batch["per_func"]) for batch in evaluations] == [6, 6, 2]
    for batch in evaluations:
        assert not batch["training"]
        rewards = batch["per_func"].view(-1, 2)
        expected = durian_advantage(
            rewards,
            visual_entropy=batch["entropy"],
            confidence=batch["confidence"],
            num_confidence_buckets=2,
            entropy_quantiles=(0.5,),
            eps=1e-4,
        )
        assert torch.equal(batch["output"]["advantages"].view(-1, 2), expected)
        images = [example["image"] for example in batch["inputs"][::2]]
        entropy = [expected_entropy(trainer.model, trainer.processing_class, [i]) for i in images]
        assert batch["entropy"].tolist() == pytest.approx(entropy, abs=1e-4)
    assert any(f"eval_{name}" in log for name in evaluations[0]["metrics"] for log in trainer.state.log_history)

    tables = sorted((tmp_path / "out/completions").glob("*.parquet"))
    shown = [pandas.read_parquet(table)["advantage"].tolist() for table in tables]
    used = [batch["output"]["advantages"].tolist() for batch in trainer.batches]
    assert shown[0][-16:] == (used[0] + used[1] + used[2] + used[3])[-16:]


def test_lora_trains_with_the_same_scores(make):
    from peft import LoraConfig

    plain = make(max_steps=1)
    plain.train()
    trainer = make(arguments={"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])}, max_steps=2, beta=0.1)
    changed = recorded.moved(trainer, trainer.train)
    assert changed
    assert all("lora" in name for name in changed)
    batch = trainer.batches[0]
    images = [example["image"] for example in batch["inputs"][::4]]
    entropy = [expected_entropy(trainer.model, trainer.processing_class, [i]) for i in images]
    assert batch["entropy"].tolist() == pytest.approx(entropy, abs=1e-4)
    assert batch["confidence"].isfinite().all()


def test_plain_configurations_are_refused(make):
    from durian_adv.adapters.trl import DurianGRPOTrainer

    model, processor = tiny.build("qwen_text")
    for args in (GRPOConfig("out", use_cpu=True, bf16=False, report_to="none"), None):
        with pytest.raises(TypeError, match="args: expected a DurianGRPOConfig, got "):
            DurianGRPOTrainer(
                model=model,
                reward_funcs=tiny.letters,
                args=args,
                train_dataset=tiny.dataset(4, 0),
                processing_class=processor,
            )
