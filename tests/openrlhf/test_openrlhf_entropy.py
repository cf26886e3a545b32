"""Visual entropy: from extra_logs, from a table by image, from the actor's vision tower."""

import json
import math
import re

import pytest
import released
import torch
import vision

from durian_adv import durian_components
from durian_adv.adapters.openrlhf import hook as openrlhf
from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker

ENTROPIES = [1.5, 4.0, math.nan, 3.0, 0.5, 2.0]  # of six prompts
DYNAMIC = {"train__dynamic_batch_enable": True, "rollout__max_tokens_per_gpu": 96, "vllm__num_engines": 1}
ORDERS = {
    "one by one": {"rollout__micro_batch_size": 1},
    "uneven": {"rollout__micro_batch_size": 5},
    "dynamic": DYNAMIC,
}


def found(answers, **settings):
    """The advantage of each rollout at its first token."""
    batches = released.advantages(DurianExperienceMaker, answers, released.arguments(**settings))
    rewards = torch.stack(released.by_rollout(batches, "rewards")).view(-1, 4)
    return rewards, torch.stack([row[0] for row in released.by_rollout(batches, "advantages")]).view(-1, 4)


def expected(rewards, entropies):
    entropy = torch.tensor(entropies, dtype=torch.float64)
    parts = durian_components(rewards, visual_entropy=entropy, weights=(0.3, 0.7, 0), entropy_quantiles=(0.5,))
    assert not torch.allclose(parts.advantages, parts.grpo, atol=0.05)
    return parts.advantages


def with_options(**more):
    return json.dumps({"weights": [0.3, 0.7, 0], "entropy_quantiles": [0.5], "eps": 1e-6, **more})


@pytest.mark.parametrize("order", ORDERS)
def test_what_the_reward_function_returns_in_extra_logs_is_the_entropy(options, order):
    options(with_options())
    answers = released.rollouts(extra_logs=lambda i: {"visual_entropy": ENTROPIES[i // 4], "format": 1.0})
    rewards, advantages = found(answers, **ORDERS[order])
    torch.testing.assert_close(advantages, expected(rewards, ENTROPIES), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_an_entropy_that_a_rollout_lacks_is_named(options, order):
    options(with_options())
    answers = released.rollouts(extra_logs=lambda i: {} if i == 9 else {"visual_entropy": ENTROPIES[i // 4]})
    with pytest.raises(
        ValueError, match=r"^info\['visual_entropy'\]: expected one per rollout, 24; return it in extra.* got 23"
    ):
        found(answers, **ORDERS[order])


@pytest.mark.parametrize("order", ORDERS)
def test_a_table_has_the_entropy_of_each_image(options, order, tmp_path):
    table = {f"{i}.png": entropy for i, entropy in enumerate(ENTROPIES)} | {
        "a.png": 0.25,
        "b.png": 0.75,
        "none.png": None,
    }
    (tmp_path / "table.json").write_text(json.dumps({k: None if v is None or v != v else v for k, v in table.items()}))
    options(with_options(entropy_table=str(tmp_path / "table.json")))
    # a path, a list, several (the mean of those that have one), one without an image, one that the table knows has none
    of_prompts = ["0.png", ["1.png"], None, ["a.png", "none.png", "b.png", "5.png"], ["4.png", None], ["none.png"]]
    answers = released.rollouts(images=lambda i: of_prompts[i // 4])
    rewards, advantages = found(answers, **ORDERS[order])
    entropies = [1.5, 4.0, math.nan, (0.25 + 0.75 + 2.0) / 3, 0.5, math.nan]
    torch.testing.assert_close(advantages, expected(rewards, entropies), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("image", ["other.png", b"\x89PNG"])
def test_an_image_that_the_table_lacks_is_named(options, image, tmp_path):
    (tmp_path / "table.json").write_text('{"0.png": 1.0}')
    options(with_options(entropy_table=str(tmp_path / "table.json")))
    answers = released.rollouts(images=lambda i: ["0.png"] if i < 20 else [image])
    message = f"table.json: expected the entropy of every image of the dataset, got none for {re.escape(repr(image))}"
    with pytest.raises(ValueError, match=message):
        found(answers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "table.json: expected a JSON object, got list"),
        ("{", "table.json: expected a JSON object, got Expecting property name"),
        ('{"0.png": "1"}', r"table.json\['0.png'\]: expected a number, got str"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_when_the_trainer_is_made(options, text, message, tmp_path):
    (tmp_path / "table.json").write_text(text)
    options(with_options(entropy_table=str(tmp_path / "table.json")))
    with pytest.raises((ValueError, TypeError), match=message):
        released.maker(DurianExperienceMaker, released.arguments())
    options(with_options(entropy_table=str(tmp_path / "none.json")))
    with pytest.raises(
        ValueError, match=r"^DURIAN_OPTIONS\.entropy_table: expected a file that can be read, .*none\.json"
    ):
        released.maker(DurianExperienceMaker, released.arguments())


def test_extra_logs_win_over_the_table(options, tmp_path):
    (tmp_path / "table.json").write_text("{}")
    options(with_options(entropy_table=str(tmp_path / "table.json")))
    answers = released.rollouts(
        images=["unknown.png"], extra_logs=lambda i: {"visual_entropy": ENTROPIES[i // 4], "other": 0}
    )
    rewards, advantages = found(answers)
    torch.testing.assert_close(advantages, expected(rewards, ENTROPIES), atol=1e-6, rtol=1e-6)


def all_null(tmp_path):
    (tmp_path / "table.json").write_text('{"0.png": null, "1.png": null}')
    return str(tmp_path / "table.json")


@pytest.mark.parametrize("seen", [{"images": ["0.png"]}, {"mm_train_inputs": {"pixel_values": torch.zeros(4, 8)}}])
def test_images_without_any_entropy_are_refused(options, seen, tmp_path):
    none = {"extra_logs": {"visual_entropy": math.nan}}
    options(with_options())
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a number for prompts with images"):
        found(released.rollouts(**seen, **none))
    options(with_options(entropy_table=all_null(tmp_path)))
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a number for prompts with images"):
        found(released.rollouts(**seen))
    options(with_options(entropy_table=all_null(tmp_path), weights=[0.3, 0.3, 0.4]))
    for no_image in (None, [], [None]):
        found(released.rollouts(images=no_image, **none))
        found(released.rollouts(images=no_image))


@pytest.mark.parametrize("order", ORDERS)
def test_entropies_that_differ_within_a_prompt_are_refused(options, order):
    options(with_options())
    differ = released.rollouts(extra_logs=lambda i: {"visual_entropy": 2.5 if i == 9 else float(i // 4)})
    with pytest.raises(ValueError, match=r"^visual_entropy: expected one value for all rows .* got 2 and 2.5"):
        found(differ, **ORDERS[order])
    some = released.rollouts(extra_logs=lambda i: {"visual_entropy": math.nan if i == 9 else float(i // 4)})
    rewards, advantages = found(some, **ORDERS[order])
    torch.testing.assert_close(advantages, expected(rewards, list(range(6))), atol=1e-6, rtol=1e-6)


def test_without_images_and_without_weight_there_is_no_perceptual_component(options):
    options(with_options())
    with pytest.raises(ValueError, match=r"^visual_entropy: expected for weights \(0\.3, 0\.7, 0\.0\)"):
        found(released.rollouts())  # it would be the only component beside GRPO's
    options(with_options(weights=[0.3, 0.3, 0.4]))
    made_by = released.maker(DurianExperienceMaker, released.arguments())
    made_by.compute_advantages_and_returns(released.experiences(made_by, released.rollouts()))
    assert not any("entropy" in name for name in made_by.durian_metrics)
    # the table is not looked at, nor is the actor asked
    options('{"weights": [0.3, 0, 0.7]}')
    found(released.rollouts(images=["unknown.png"], mm_train_inputs={"pixel_values": torch.zeros(4, 8)}))


class Towers(DurianExperienceMaker):
    """The maker with an actor whose towers tell the largest pixel."""

    def _computed(self, inputs):
        return [math.nan if one is None else float(one["pixel_values"].max()) for one in inputs]


def seen_by_towers(answers, **settings):
    made_by = released.maker(Towers, released.arguments(**settings))
    batches = made_by.compute_advantages_and_returns(released.experiences(made_by, answers))
    rewards = torch.stack(released.by_rollout(batches, "rewards")).view(-1, 4)
    return rewards, torch.stack([row[0] for row in released.by_rollout(batches, "advantages")]).view(-1, 4)


def pictures(*values):
    """What a processor makes of images of one patch each."""
    return {"pixel_values": torch.tensor(values)[:, None], "image_grid_thw": torch.ones(len(values), 3).long()}


@pytest.mark.parametrize("order", ORDERS)
def test_towers_see_the_images_of_the_first_rollout_of_a_prompt_in_any_order(options, order):
    options(with_options())
    # of another rollout they would be others
    answers = released.rollouts(
        mm_train_inputs=lambda i: None if i // 4 == 2 else pictures(ENTROPIES[i // 4] + 10 * (i % 4)),
        images=lambda i: None if i // 4 == 2 else ["a.png"],
    )
    rewards, advantages = seen_by_towers(answers, **ORDERS[order])
    torch.testing.assert_close(advantages, expected(rewards, ENTROPIES), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shown", ["to one rollout", "to all rollouts", "to one without images"])
def test_images_that_an_environment_adds_are_not_taken_for_the_prompts(options, order, shown):
    def inputs(i):
        if shown == "to one without images":
            return pictures(1.0) if i == 9 else None
        return pictures(1.0, 2.0) if i == 9 or shown == "to all rollouts" else pictures(1.0)

    options(with_options())
    images = None if shown == "to one without images" else ["a.png"]
    answers = released.rollouts(mm_train_inputs=inputs, images=images)
    with pytest.raises(ValueError, match=r"^mm_train_inputs: expected a prompt's own images and no others"):
        seen_by_towers(answers, **ORDERS[order])


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    model, processor = vision.saved(folder)
    files = [vision.image_file(folder, k) for k in range(8)]
    return model, processor, files


@pytest.mark.parametrize("features", ["patches", "projected"])
def test_the_hook_in_openrlhfs_actor_gives_the_entropy_of_the_images(tower, features):
    name, processor, files = tower
    actor = vision.actor(name)
    assert actor.is_vlm
    values = []
    for chosen in (files[:1], files[7:], files[2:5]):
        _, inputs = vision.inputs(processor, chosen)
        values.append(openrlhf.tower_entropy(actor.model, inputs, features))
        assert values[-1] == pytest.approx(vision.entropy(actor.model, inputs, features), abs=2e-3)
    assert values[1] - values[0] > 0.1


def test_the_tower_is_found_in_an_engine_and_under_lora(tower):
    name, processor, files = tower
    _, inputs = vision.inputs(processor, files[3:5])
    plain = openrlhf.tower_entropy(vision.actor(name).model, inputs, "patches")
    lora = vision.actor(name, lora_rank=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    assert openrlhf.tower_entropy(lora.model, inputs, "patches") == plain
    engine = torch.nn.Module()
    engine.module = lora.model  # as DeepSpeed's engine keeps it
    assert openrlhf.tower_entropy(engine, inputs, "patches") == plain


def test_a_model_without_a_known_tower_is_named(tower):
    _, processor, files = tower
    _, inputs = vision.inputs(processor, files[:1])
    with pytest.raises(
        ValueError, match=r"^visual_entropy: expected a vision tower, .* entropy_table, .* got Linear, in"
    ):
        openrlhf.tower_entropy(torch.nn.Linear(2, 2), inputs, "patches")
