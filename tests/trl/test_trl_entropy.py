"""Visual entropy: the column, the hook and the extra call agree, and images find their prompts."""

import math

import pytest
import recorded
import tiny
import torch
from datasets import Dataset, IterableDataset
from test_trl_training import expected_entropy
from trl import GRPOTrainer

from durian_adv import eigen_entropy
from durian_adv.data.scoring import towers

FAMILIES = [family for family in tiny.BUILDERS if family != "qwen_text"]
# of the prompts of a batch only some have an entropy
FEW_PROMPTS = pytest.mark.filterwarnings("ignore:a generation batch of . prompts with visual entropy")
FIXED = {k: ["a", "b c", "7", "d"] for k in range(16)}


def run(make, family, **more):
    """One step; the batch, and how often the vision tower ran while it was scored."""
    trainer = make(family, max_steps=1, **more)
    calls = []
    if trainer._vision is not None:
        trainer._vision.connector.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.train()
    (batch,) = trainer.batches
    return trainer, batch, calls.count(False)


def truth(trainer, batch, kind="patches", group=4):
    """The entropy of each prompt of a batch, from its own image or images, without a hook."""
    out = []
    for example in batch["inputs"][::group]:
        images = example["images"] if "images" in example else [example["image"]]
        out.append(expected_entropy(trainer.untrained, trainer.processing_class, images, kind))
    return out


@pytest.fixture
def make(make):
    def with_untrained(family, **more):
        trainer = make(family, **more)
        trainer.untrained = tiny.build(family)[0] if isinstance(family, str) else family()[0]
        return trainer

    return with_untrained


@pytest.mark.parametrize("family", FAMILIES)
def test_column_hook_and_extra_call_give_the_same_entropy(make, family):
    hooked, batch, forwards = run(make, family)
    assert forwards == 1 + 4  # the prefill of generation, and the chunks of the forward for the confidence
    entropy = truth(hooked, batch)
    assert max(entropy) - min(entropy) > 0.1
    assert batch["entropy"].tolist() == pytest.approx(entropy, abs=1e-4)

    # completions from elsewhere: TRL runs no forward before it scores, so the tower is called once, for 4 of 16 images
    called, again, forwards = run(make, family, arguments={"rollout_func": recorded.scripted(FIXED)})
    assert forwards == 1 + 4
    assert again["entropy"].tolist() == pytest.approx(truth(called, again), abs=1e-4)
    assert again["entropy"].tolist() == pytest.approx(batch["entropy"].tolist(), abs=1e-4)

    whole = tiny.dataset(8)
    column = [expected_entropy(hooked.untrained, hooked.processing_class, [image]) for image in whole["image"]]
    _, third, _ = run(make, family, train_dataset=whole.add_column("visual_entropy", column))
    assert third["entropy"].tolist() == pytest.approx(batch["entropy"].tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_projected_tokens_may_be_taken_instead_of_patches(make, family):
    trainer, batch, _ = run(make, family, durian_features="projected")
    entropy = truth(trainer, batch, "projected")
    assert batch["entropy"].tolist() == pytest.approx(entropy, abs=1e-4)
    patches = truth(trainer, batch)
    assert min(abs(a - b) for a, b in zip(entropy, patches, strict=True)) > 1e-3


def test_the_hook_computes_one_entropy_a_prompt(make, monkeypatch):
    counted = []

    def counting(values, **kwargs):
        counted.append(values.shape)
        return eigen_entropy(values, **kwargs)

    monkeypatch.setattr(towers, "eigen_entropy", counting)
    run(make, "qwen25vl")
    assert len(counted) == 4


def test_the_old_policys_forwards_are_enough_where_nothing_is_generated_here(make):
    # two passes over each batch: TRL runs the old policy, in chunks of 4 samples, and no tower call is added
    trainer, batch, forwards = run(
        make, "qwen25vl", num_iterations=2, arguments={"rollout_func": recorded.scripted(FIXED)}
    )
    assert forwards == 4
    assert batch["forwards"] == 1
    assert batch["entropy"].tolist() == pytest.approx(truth(trainer, batch), abs=1e-4)


def test_what_generation_saw_is_enough_where_the_old_policy_runs_as_well(make):
    trainer, batch, forwards = run(make, "qwen25vl", num_iterations=2)
    assert forwards == 1 + 4
    assert batch["entropy"].tolist() == pytest.approx(truth(trainer, batch), abs=1e-4)


def test_a_prompt_with_several_images_has_the_mean_of_their_entropies(make):
    for rollouts in ({}, {"arguments": {"rollout_func": recorded.scripted(FIXED)}}):
        trainer, batch, _ = run(make, "qwen25vl", train_dataset=tiny.dataset(8, images=2), **rollouts)
        assert batch["entropy"].tolist() == pytest.approx(truth(trainer, batch), abs=1e-4)
        assert sum(batch["output"]["num_images"]) == 32


def test_images_in_the_messages_of_a_prompt_are_counted(make):
    def with_image(k):
        content = [
            {"type": "image", "image": tiny.photograph(k / 4, seed=k)},
            {"type": "text", "text": f"What in {k}?"},
        ]
        return {"prompt": [{"role": "user", "content": content}]}

    assert features_counted(with_image(0)) == 1
    for column in ({"images": []}, {"images": None}, {"image": None}):  # of other rows, which have theirs there
        assert features_counted(with_image(0) | column) == 1
    assert features_counted(with_image(0) | {"images": [1]}) == 2
    assert (
        features_counted({"prompt": [{"role": "user", "content": [{"type": "image", "image": None}]}], "image": 1}) == 1
    )
    assert features_counted({"prompt": "text"}) == 0
    assert features_counted({"prompt": [{"role": "user", "content": "text"}], "image": None}) == 0
    assert features_counted({"prompt": [], "images": [1, 2]}) == 2
    assert features_counted({"prompt": [{"role": "assistant", "content": None}]}) == 0
    assert features_counted({}) == 0


@pytest.mark.skipif(not tiny.TRANSFORMERS_5, reason="TRL 1.0 takes no images from messages beside a column")
def test_images_in_messages_beside_an_empty_column_are_the_prompts(make):
    def rows():
        for k in range(8):
            content = [
                {"type": "image", "image": tiny.photograph(k / 8, seed=k)},
                {"type": "text", "text": f"What is in {k}?"},
            ]
            yield {"prompt": [{"role": "user", "content": content}], "images": []}

    _, batch, _ = run(make, "qwen25vl", train_dataset=IterableDataset.from_generator(rows))
    assert batch["output"]["num_images"] == [1] * 16
    assert batch["entropy"].isfinite().all()


def features_counted(example):
    from durian_adv.adapters.trl.trainer import _num_images

    return _num_images(example)


def test_the_tiles_of_an_image_count_as_images(make):
    def tiled():
        return tiny.build("smolvlm", splitting=True)

    wide_and_square = [tiny.photograph(k / 8, (84, 28 + 56 * (k % 2)), k) for k in range(8)]
    data = Dataset.from_dict({"prompt": tiny.dataset(8, images=0)["prompt"], "image": wide_and_square})
    options = {"train_dataset": data, "generation_kwargs": None, "max_completion_length": 4, "shuffle_dataset": False}
    trainer, batch, _ = run(make, tiled, **options)
    tiles = batch["output"]["pixel_values"][::4], batch["output"]["pixel_attention_mask"][::4]
    model, numbers = trainer.untrained.model, []
    for pixels, masks, entropy in zip(*tiles, batch["entropy"], strict=True):
        real = [k for k in range(len(pixels)) if pixels[k].any()]
        numbers.append(len(real))
        found = []
        for k in real:
            patches = masks[k].unfold(0, 14, 14).unfold(1, 14, 14).sum((-1, -2)) > 0
            with torch.no_grad():
                states = model.vision_model(pixel_values=pixels[k : k + 1], patch_attention_mask=patches[None])
            found.append(eigen_entropy(states.last_hidden_state[0][patches.flatten()]).item())
        assert entropy.item() == pytest.approx(sum(found) / len(found), abs=1e-4)
    assert len(set(numbers)) == 2
    assert min(numbers) > 1


@FEW_PROMPTS
def test_a_column_may_lack_values_and_survives_the_removal_of_unused_columns(make):
    values = [None, 1.0, 2.0, math.nan, 3.0, 0.5, 0.25, 4.0]
    data = tiny.dataset(8).add_column("visual_entropy", values)
    _, batch, _ = run(make, "qwen25vl", train_dataset=data, remove_unused_columns=True)
    expected = []
    for example in batch["inputs"][::4]:
        value = values[recorded.question(example["prompt"])]
        expected.append(math.nan if value is None else value)
    assert batch["entropy"].tolist() == pytest.approx(expected, nan_ok=True)
    missing = sum(math.isnan(v) for v in expected)
    assert batch["metrics"]["durian/visual_entropy_missing_share"] == missing / 4


def test_data_without_images_leave_the_component_out(make):
    for family in ("qwen25vl", "qwen_text"):
        data = tiny.dataset(8, images=0, parts=family == "qwen25vl")  # TRL 1.0 takes no strings there
        _, batch, _ = run(make, family, train_dataset=data)
        assert batch["entropy"] is None
        assert "durian/perceptual_std_0" not in batch["metrics"]
        assert batch["output"]["advantages"].any()


def some_without(keep):
    """Eight prompts, with an image where ``keep(k)``."""
    prompts, images = [], []
    for k in range(8):
        text = [{"type": "text", "text": f"What is in {k}?"}]
        prompts.append([{"role": "user", "content": [{"type": "image", "text": None}, *text] if keep(k) else text}])
        images.append([tiny.photograph(k / 8, seed=k)] if keep(k) else [])
    return Dataset.from_dict({"prompt": prompts, "images": images})


def test_a_batch_without_images_leaves_the_component_out_and_the_next_goes_on(make):
    data = some_without(lambda k: k < 4)
    trainer = make("smolvlm", train_dataset=data, shuffle_dataset=False, max_steps=3, durian_window=8)
    trainer.train()
    first, without, third = trainer.batches
    assert first["entropy"].isfinite().all()
    assert without["entropy"] is None
    assert without["output"]["advantages"].any()
    assert third["entropy"].isfinite().all()
    assert trainer._estimator.state_dict()["window"]["visual_entropy"].isnan().tolist() == [True] * 4 + [False] * 4


@pytest.mark.skipif(tiny.TRANSFORMERS_5, reason="TRL 1.16 itself fails where some prompts of a batch have no image")
@FEW_PROMPTS
def test_prompts_without_an_image_among_others_have_no_entropy(make):
    trainer, batch, _ = run(make, "smolvlm", train_dataset=some_without(lambda k: k % 2 == 0), shuffle_dataset=False)
    assert batch["entropy"].isnan().tolist() == [False, True, False, True]
    images = [example["images"] for example in batch["inputs"][::8]]
    entropy = [expected_entropy(trainer.untrained, trainer.processing_class, i) for i in images]
    assert batch["entropy"][::2].tolist() == pytest.approx(entropy, abs=1e-4)
    assert batch["metrics"]["durian/visual_entropy_missing_share"] == 0.5


def test_a_text_model_takes_a_column(make):
    values = [float(k) for k in range(8)]
    _, batch, _ = run(make, "qwen_text", train_dataset=tiny.dataset(8, 0).add_column("visual_entropy", values))
    expected = [values[recorded.question(example["prompt"])] for example in batch["inputs"][::4]]
    assert batch["entropy"].tolist() == expected


@pytest.mark.parametrize("value", [None, math.nan])
def test_images_of_which_none_has_an_entropy_are_an_error_unless_it_has_no_weight(make, value):
    """Without images the component is left out; with images that would be another method than was asked for."""
    data = tiny.dataset(8).map(lambda _: {"visual_entropy": value}, features=None)
    message = r"^visual_entropy: expected a number for prompts with images, for durian_weights\[1\] > 0, got none"
    with pytest.raises(ValueError, match=message):
        run(make, "qwen25vl", train_dataset=data)
    _, batch, _ = run(make, "qwen25vl", train_dataset=data, durian_weights=[0.3, 0, 0.7])
    assert batch["output"]["advantages"].any()


class WithAToolsImage(GRPOTrainer):
    """What TRL returns after a tool has given a gray image to every completion; or without any image, as it may."""

    dropped = False

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.dropped:  # where the images do not fit the tokens
            del output["pixel_values"], output["image_grid_thw"]
            return output | {"num_images": None}
        grids, pixels = output["image_grid_thw"], output["pixel_values"]
        each = torch.split(pixels, grids.prod(-1).tolist())
        output["pixel_values"] = torch.cat([part for own in each for part in (own, torch.zeros_like(own))])
        output["image_grid_thw"] = grids.repeat_interleave(2, 0)
        return output | {"num_images": [2] * len(inputs)}


class RecordedWithAToolsImage(recorded.Recorded, WithAToolsImage):
    pass


@pytest.mark.parametrize(("dropped", "count"), [(False, 32), (True, 0)])
def test_images_that_are_not_the_prompts_are_refused(make, monkeypatch, dropped, count):
    """The difficulty of a prompt must not depend on what a tool returned to one completion."""
    monkeypatch.setattr(WithAToolsImage, "dropped", dropped)
    given = {"trainer": RecordedWithAToolsImage, "num_iterations": 2}  # with log-probabilities of the old policy
    message = rf"^visual_entropy: expected a column of the dataset .* got {count} images of prompts with 16 on rank 0"
    with pytest.raises(ValueError, match=message):
        run(make, "qwen25vl", **given)


def test_a_column_goes_without_images_that_trl_left_out(make, monkeypatch):
    monkeypatch.setattr(WithAToolsImage, "dropped", True)
    data = tiny.dataset(8).add_column("visual_entropy", [float(k) for k in range(8)])
    given = {"trainer": RecordedWithAToolsImage, "num_iterations": 2}
    _, batch, _ = run(make, "qwen25vl", train_dataset=data, **given)
    assert batch["entropy"].tolist() == [recorded.question(e["prompt"]) for e in batch["inputs"][::4]]


def test_only_the_perceptual_component_on_data_without_images_is_an_error(make):
    with pytest.raises(ValueError, match=r"^visual_entropy: expected for weights"):
        run(make, "qwen_text", durian_weights=[0.0, 1.0, 0.0])


def test_a_model_whose_tower_is_not_found_is_told_so(make, monkeypatch):
    monkeypatch.setattr(towers, "find_vision", lambda model: None)
    with pytest.raises(ValueError, match=r"^visual_entropy: expected .* column visual_entropy .* got Qwen2_5_VL"):
        run(make, "qwen25vl")


def test_features_without_a_layout_are_refused():
    tower, connector = torch.nn.Identity(), torch.nn.Identity()
    vision = towers.Vision(tower, connector)
    with (
        pytest.raises(ValueError, match=r"patches: expected features .* got \(4, 3\) and no grid"),
        towers.caught_entropies(vision, "patches", [True]),
    ):
        connector(torch.randn(4, 3))
    with pytest.raises(ValueError, match="expected 2 images of 2 samples, got 1"):
        towers.mean_by_sample([1.0], [1, 1])


def test_patches_of_padding_do_not_count():
    model, _ = tiny.build("smolvlm")
    pixels, real = torch.randn(2, 1, 3, 56, 56), torch.ones(2, 1, 56, 56, dtype=torch.bool)
    real[1, 0, :, 28:] = False  # half of the second image
    patches = real[:, 0, ::14, ::14].contiguous()
    with torch.no_grad():
        states = model.model.vision_model(pixel_values=pixels[:, 0], patch_attention_mask=patches).last_hidden_state
        with towers.caught_entropies(towers.find_vision(model), "patches", [True, True]) as caught:
            model.get_image_features(pixels, real)
    expected = [eigen_entropy(states[i][patches[i].flatten()]).item() for i in range(2)]
    assert caught == pytest.approx(expected, abs=1e-5)
    assert abs(caught[1] - eigen_entropy(states[1]).item()) > 1e-2


def test_hooks_do_not_outlive_a_batch(make):
    trainer, _, _ = run(make, "qwen25vl")
    assert not trainer._vision.tower._forward_pre_hooks
    assert len(trainer._vision.connector._forward_hooks) == 1  # this test's own
