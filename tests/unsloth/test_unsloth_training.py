"""Unsloth's GRPO trainer with Durian's advantages: real training on images and on text, with its own defaults."""

import copy
import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import patched
import pytest
import recorded
import tiny
import torch
import trl
from test_trl_training import expected_confidence, expected_entropy, expected_logprobs
from unsloth_zoo.rl_replacements import GRPO_VISION_KEYS, grpo_get_vision_inputs

from durian_adv import durian_advantage, sequence_confidence
from durian_adv.adapters.trl import DurianConfig, DurianGRPOConfig, DurianGRPOTrainer, forward

HERE = Path(__file__).parent
CPU = {"use_cpu": True, "report_to": "none"}


def by_hand(rewards, entropy, confidence):
    """The advantages of the library for what a test computed itself."""
    options = {"num_confidence_buckets": 2, "entropy_quantiles": (0.5,), "eps": 1e-4}
    return durian_advantage(rewards, visual_entropy=entropy, confidence=confidence, **options).flatten()


def test_the_trainer_is_unsloths_with_a_mixin_before_it():
    assert trl.GRPOTrainer.__name__ == "UnslothGRPOTrainer"
    assert issubclass(DurianGRPOTrainer, trl.GRPOTrainer)
    assert issubclass(DurianGRPOConfig, trl.GRPOConfig)
    method = inspect.signature(trl.GRPOTrainer._generate_and_score_completions)
    assert [p.kind.name for p in method.parameters.values()][1:] == ["VAR_POSITIONAL", "VAR_KEYWORD"]


def test_the_defaults_stay_unsloths(tmp_path):
    theirs, ours = trl.GRPOConfig(str(tmp_path), **CPU), DurianGRPOConfig(str(tmp_path), durian_window=7, **CPU)
    assert (ours.learning_rate, ours.optim, ours.gradient_accumulation_steps) == (5e-5, "adamw_8bit", 2)
    own = {name for name in vars(ours) if name.startswith("durian_")}
    assert set(vars(ours)) - own == set(vars(theirs))
    for name in set(vars(theirs)) - {"distributed_state"}:
        assert repr(getattr(ours, name)) == repr(getattr(theirs, name)), name
    pristine = next(base for base in trl.GRPOConfig.__mro__[1:] if dataclasses.is_dataclass(base))
    assert pristine.__dataclass_fields__["learning_rate"].default == 1e-6
    assert ours.unsloth_num_chunks == -1  # an option of Unsloth's constructor alone
    for made in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (made.durian_window, made.learning_rate) == (7, 5e-5)


def test_images_train_and_every_score_is_that_of_the_images(make):
    trainer = make("qwen25vl", save_strategy="steps", save_steps=2, durian_window=4)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    changed = recorded.moved(trainer, trainer.train)
    assert len(changed) > len(start) / 2
    assert (Path(trainer.args.output_dir) / "checkpoint-2/durian_window.pt").exists()

    trainer.model.load_state_dict(start)  # the policy of the first batch
    batch = trainer.batches[0]
    assert batch["forwards"] == 1
    images = [example["image"] for example in batch["inputs"][::4]]
    entropy = torch.tensor([expected_entropy(trainer.model, trainer.processing_class, [i]) for i in images])
    assert entropy.max() - entropy.min() > 0.1
    torch.testing.assert_close(batch["entropy"].float(), entropy, atol=1e-4, rtol=0)
    confidence = expected_confidence(trainer, batch["output"]).view(4, 4)
    torch.testing.assert_close(batch["confidence"].float(), confidence, atol=1e-4, rtol=0)
    rewards = batch["per_func"].view(4, 4)
    right = by_hand(rewards, entropy, confidence)
    torch.testing.assert_close(batch["output"]["advantages"], right, atol=1e-6, rtol=0)
    assert not torch.equal(batch["of_trl"], right)
    assert batch["table"][-16:] == batch["output"]["advantages"].tolist()

    gray = {**batch["output"], "pixel_values": torch.zeros_like(batch["output"]["pixel_values"])}
    unseen = expected_confidence(trainer, gray).view(4, 4)  # the tolerance above tells one image from another
    assert (unseen - confidence).abs().amax(1).min() > 0.001


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}], ids=["extra forward", "old policy"])
def test_left_packed_text_trains_with_the_log_probabilities_of_its_own_tokens(make, options):
    trainer = make("qwen_text", **options)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    changed = recorded.moved(trainer, trainer.train)
    assert len(changed) > len(start) / 2
    trainer.model.load_state_dict(start)
    batch = trainer.batches[0]
    output = batch["output"]
    assert int(output["max_left_pad"].max()) > 0  # else nothing is packed
    assert ("old_per_token_logps" in output) == bool(options)
    if options:
        assert output["old_per_token_logps"].shape[1] > output["completion_mask"].shape[1]
    logprobs = [
        values[ids[mask.bool()] != trainer.processing_class.pad_token_id]
        for values, ids, mask in zip(
            expected_logprobs(trainer, output), output["completion_ids"], output["completion_mask"], strict=True
        )
    ]
    confidence = torch.stack([sequence_confidence(values) for values in logprobs]).view(4, 4)
    torch.testing.assert_close(batch["confidence"].float(), confidence, atol=1e-4, rtol=0)
    right = by_hand(batch["per_func"].view(4, 4), None, confidence)
    torch.testing.assert_close(output["advantages"], right, atol=1e-6, rtol=0)


def test_all_that_unsloth_puts_into_a_batch_is_kept_by_its_forward_or_known_to_be_no_input():
    patched_class = next(base for base in trl.GRPOTrainer.__mro__ if base.__name__ == "_UnslothGRPOTrainer")
    names = recorded.names_of_a_batch(patched_class._generate_and_score_completions)
    assert {"advantages", "max_left_pad", "unsloth_sample_weight", "pixel_values", "num_images"} <= names
    more = forward.inputs(dict.fromkeys(names, 1))
    assert list(forward.refused(trl.GRPOTrainer._get_per_token_logps_and_entropies, more)) == []


@pytest.mark.parametrize("name", [*GRPO_VISION_KEYS, *recorded.INPUTS_OF_OTHERS, "pixel_values_audio", "image_embeds"])
def test_an_input_is_refused_by_name_unless_unsloths_own_filter_keeps_it(name):
    method = trl.GRPOTrainer._get_per_token_logps_and_entropies
    assert any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method).parameters.values())
    kept = grpo_get_vision_inputs({name: 1}).get(name) is not None
    assert list(forward.refused(method, forward.inputs({name: 1}))) == ([] if kept else [name])


def test_a_batch_with_an_input_that_unsloth_drops_is_refused_by_name(make, monkeypatch):
    theirs = trl.GRPOTrainer._generate_and_score_completions
    monkeypatch.setattr(
        trl.GRPOTrainer,
        "_generate_and_score_completions",
        lambda self, *args, **kwargs: theirs(self, *args, **kwargs) | {"input_features": torch.zeros(16)},
    )
    with pytest.raises(RuntimeError, match=r"_get_per_token_logps_and_entropies does not take input_features$"):
        make("qwen_text", max_steps=1).train()


def test_the_wrong_order_of_imports_is_an_error_that_says_what_to_do(tmp_path):
    code = """
import patched
from durian_adv.adapters.trl import DurianGRPOConfig, DurianGRPOTrainer
config = DurianGRPOConfig("out", use_cpu=True, bf16=False, report_to="none")
patched.replace()
for make in (lambda: DurianGRPOConfig("out"), lambda: DurianGRPOTrainer(None, [], config)):
    try:
        make()
    except RuntimeError as error:
        print("REFUSED", error)
"""
    path = os.pathsep.join([str(HERE), str(HERE.parent / "trl")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "cache")},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    refused = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    remedy = "is another class than when durian_adv.adapters.trl was imported; import the package that replaces it"
    assert refused == [f"REFUSED trl.{name} {remedy} (unsloth) first" for name in ("GRPOConfig", "GRPOTrainer")]


def test_options_and_what_is_refused_are_those_of_the_page_on_trl():
    with pytest.raises(ValueError, match=r"^durian_window: expected an integer >= 0, got -1"):
        DurianGRPOConfig("out", durian_window=-1, **CPU)
    with pytest.raises(ValueError, match=r"^multi_objective_aggregation: .*GDPO"):
        DurianGRPOConfig("out", multi_objective_aggregation="normalize_then_sum", **CPU)
    model, processor = patched.build("qwen_text")
    args = trl.GRPOConfig("out", **CPU)
    with pytest.raises(TypeError, match="args: expected a DurianGRPOConfig"):
        DurianGRPOTrainer(model, tiny.letters, args, tiny.dataset(4, 0), processing_class=processor)
    assert not issubclass(trl.GRPOConfig, DurianConfig)
