"""Every option of the estimator reaches a training, and what surrounds it changes nothing."""

import pytest
import recorded
import tiny
import torch
from accelerate.state import AcceleratorState
from test_trl_training import features

import durian_adv
from durian_adv import baselines, durian_components, eigen_entropy, weighting
from durian_adv._src.options import ESTIMATORS
from durian_adv.data.scoring import towers

FUNCTIONS = {
    "grpo": durian_adv.grpo_advantage,
    "dr_grpo": baselines.dr_grpo_advantage,
    "batch_std": baselines.batch_std_advantage,
    "rloo": baselines.rloo_advantage,
    "reinforce_plus_plus": baselines.reinforce_plus_plus_advantage,
    "reinforce_plus_plus_baseline": baselines.reinforce_plus_plus_baseline_advantage,
}
SCALED = set(FUNCTIONS) - {"dr_grpo", "rloo"}


def one_step(make, family="qwen_text", **options):
    trainer = make(family, max_steps=1, **options)
    changed = recorded.moved(trainer, trainer.train)
    assert changed
    (batch,) = trainer.batches
    return batch, batch["output"]["advantages"].view(4, 4), batch["per_func"][:, 0].view(4, 4)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("durian", "difficulty_prior")])
def test_every_estimator_of_the_library_trains(make, name):
    batch, advantages, rewards = one_step(make, durian_estimator=name, durian_correction=0, durian_eps=0.25)
    chosen = {"correction": 0, "eps": 0.25} if name in SCALED else {}
    assert torch.equal(advantages, FUNCTIONS[name](rewards, **chosen))
    assert advantages.any()
    assert batch["forwards"] == 0  # no score is looked for
    assert batch["metrics"]["durian/advantage_abs_max"] == advantages.abs().max()


@pytest.mark.parametrize("name", ["linear", "focal"])
def test_the_difficulty_prior_trains_with_a_weighting_by_name(make, name):
    options = {"durian_estimator": "difficulty_prior", "durian_weighting": name, "durian_success_threshold": 0.2}
    _, advantages, rewards = one_step(make, **options)
    right = weighting.reweighted_advantage(rewards, weight=getattr(weighting, name), success_threshold=0.2)
    assert torch.equal(advantages, right)
    assert advantages.any()


@pytest.mark.parametrize("options", [{"no_signal": "drop"}, {"correction": 0}, {"eps": 0.5}], ids=str)
def test_an_option_changes_what_the_library_says_it_changes(make, options):
    def half(completions, **_):  # two prompts of the four have no signal
        return [value if i < 8 else 1.0 for i, value in enumerate(tiny.letters(completions))]

    given = {f"durian_{name}": value for name, value in options.items()}
    common = {"reward_funcs": half, "durian_num_confidence_buckets": 1}
    batch, advantages, rewards = one_step(make, **common, **given)
    data = {"confidence": batch["confidence"], "num_confidence_buckets": 1}
    right = durian_components(rewards, **data, **{"eps": 1e-4, **options}).advantages
    assert torch.equal(advantages, right)
    assert not torch.equal(right, durian_components(rewards, **data, eps=1e-4).advantages)


def test_a_column_category_counts_with_a_fourth_weight(make):
    kinds = ["geometry", "algebra"] * 4
    data = tiny.dataset(8, 0).add_column("category", kinds)
    options = {"train_dataset": data, "durian_weights": [0.25, 0.0, 0.0, 0.75]}
    batch, advantages, rewards = one_step(make, **options)
    of_rows = [kinds[recorded.question(example["prompt"])] for example in batch["inputs"]]
    assert batch["category"] == of_rows
    category = torch.tensor([kind == "algebra" for kind in of_rows[::4]]).long()
    right = durian_components(rewards, category=category, weights=(0.25, 0, 0, 0.75), eps=1e-4)
    assert torch.equal(advantages, right.advantages)
    assert batch["metrics"]["durian/categories"] == len(category.unique())
    with pytest.raises(ValueError, match=r"^category: expected for weights"):
        one_step(make, durian_weights=[0.25, 0.0, 0.0, 0.75])
    _, three, rewards = one_step(make, train_dataset=data, durian_weights=[1.0, 0.0, 0.0])  # a column of another use
    assert torch.equal(three, durian_adv.grpo_advantage(rewards, eps=1e-4))


def wide():
    """A vision tower of width 96: its Gram matrix is multiplied out, which autocast would do in bfloat16."""
    return tiny.build("qwen25vl", hidden_size=96, intermediate_size=128)


@pytest.fixture
def bf16(monkeypatch):
    """Leave a process as it was: bf16=True sets a variable and Accelerate's state for all later trainers."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("bf16")
def test_autocast_around_a_training_changes_no_entropy_and_no_advantage(make, monkeypatch):
    seen, active = [], []
    own = towers.eigen_entropy

    def watched(values, *args, **kwargs):
        active.append(torch.is_autocast_enabled("cpu"))
        found = own(values, *args, **kwargs)
        seen.append((values.clone(), found))
        return found

    monkeypatch.setattr(towers, "eigen_entropy", watched)
    # completions from elsewhere: the tower runs for its entropies alone, under TRL's autocast
    rollouts = recorded.scripted({k: ["a", "b cd", "7x", f"answer {k}"] for k in range(8)})
    trainer = make(wide, max_steps=1, bf16=True, arguments={"rollout_func": rollouts})
    changed = recorded.moved(trainer, trainer.train)
    assert changed
    (batch,) = trainer.batches
    assert any(active)  # else this says nothing
    entropies = []
    for values, found in seen:
        assert values.shape[-1] == 96
        exact = eigen_entropy(values.double())
        assert float(found) == pytest.approx(float(exact), abs=1e-3 if values.dtype == torch.bfloat16 else 1e-4)
        entropies.append(float(found))
    assert batch["entropy"].tolist() == entropies[:4]
    assert len(set(entropies)) == 4
    right = durian_components(
        batch["per_func"][:, 0].view(4, 4),
        visual_entropy=batch["entropy"],
        confidence=batch["confidence"],
        num_confidence_buckets=2,
        entropy_quantiles=(0.5,),
        eps=1e-4,
    ).advantages
    assert torch.equal(batch["output"]["advantages"].view(4, 4), right)


def test_features_of_the_tower_are_96_wide_here():
    model, processor = wide()
    pixels = processor.image_processor(images=[tiny.photograph(0.5)], return_tensors="pt")
    assert features(model.model, pixels, "patches").shape[-1] == 96
