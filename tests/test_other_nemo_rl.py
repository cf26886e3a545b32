"""The example for NeMo-RL in docs/other-trainers.md.

With ``NEMO_RL``, the path of a checkout, and what it needs installed: its own classes and batches, and every place
where it calls an estimator. Without one: the signatures of revision 7ea279a.
"""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from elsewhere import checkout, example, stand_in

from durian_adv import durian_components, sequence_confidence
from durian_adv.diagnostics import durian_metrics
from durian_adv.estimator import AdvantageEstimator

PROMPTS, ROLLOUTS, TOKENS = 16, 4, 12


@pytest.fixture(scope="module")
def nemo_rl():
    """Its module ``nemo_rl.algorithms.grpo``; None without a checkout."""
    if checkout("NEMO_RL") is None:
        return None
    return pytest.importorskip("nemo_rl.algorithms.grpo")


@pytest.fixture
def names(nemo_rl, monkeypatch):
    if nemo_rl is None:
        stand_in(monkeypatch, "nemo_rl.algorithms.grpo")
        stand_in(monkeypatch, "nemo_rl.algorithms", grpo=None)
    return example("nemo-rl")


def estimator(names, **options):
    names["AdvantageEstimator"] = lambda: AdvantageEstimator(**options)
    return names["DurianAdvantageEstimator"](None, None)


def batch(seed=0, **more):
    """What compute_advantage gets: ids are the prompt's tokens, padded; masks are of tokens times samples."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(5, 50, (PROMPTS, 7), generator=draw).repeat_interleave(ROLLOUTS, 0)
    rows = PROMPTS * ROLLOUTS
    lengths = torch.randint(1, TOKENS - 2, (rows, 1), generator=draw)
    mask = ((torch.arange(TOKENS) >= 2) & (torch.arange(TOKENS) < 2 + lengths)).float()
    order = torch.randperm(rows, generator=draw)
    return {
        "prompt_ids": prompts[order],
        "rewards": torch.randint(0, 2, (rows,), generator=draw).float(),
        "mask": mask,
        "repeated_batch": more,
        "logprobs_policy": -torch.rand(rows, TOKENS, generator=draw),
        "logprobs_reference": None,
    }


def prompt_numbers(given):
    return torch.unique(given["prompt_ids"], dim=0, return_inverse=True)[1]


@pytest.mark.parametrize("images", [False, True])
def test_the_example_gives_the_librarys_advantages_and_metrics(names, images):
    given = batch()
    index = prompt_numbers(given)
    entropy = index / 3 if images else None
    if images:
        given["repeated_batch"] = {"extra_env_info": [{"visual_entropy": x} for x in entropy.tolist()]}
    made = estimator(names)
    got = made.compute_advantage(**given)
    more = {"prompt_index": index, "valid": given["mask"].bool().any(1)}
    confidence = sequence_confidence(given["logprobs_policy"], given["mask"])
    parts = durian_components(given["rewards"], confidence=confidence, visual_entropy=entropy, **more)
    assert torch.equal(got, parts.advantages[:, None] * given["mask"])
    assert bool(got.any())
    metrics = durian_metrics(parts, given["rewards"], **more)
    assert {name: made.last_metrics[name] for name in metrics} == metrics


def test_a_masked_sample_gets_0_and_changes_nothing_else(names):
    """``loss_multiplier`` 0, or a log-probability error: NeMo-RL hands over a mask without a token."""
    given = batch()
    keep = torch.arange(PROMPTS * ROLLOUTS) % 7 != 0
    clean = {name: value[keep] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    expected = estimator(names).compute_advantage(**clean)
    given["mask"] = given["mask"] * keep[:, None]
    given["rewards"] = given["rewards"].masked_fill(~keep, 1e30)
    got = estimator(names).compute_advantage(**given)
    assert torch.equal(got[keep], expected)
    assert not got[~keep].any()


def of_images(given, *value):
    """The same batch, its prompts one question on an image each: their tokens, NeMo-RL's ids, are the same."""
    index = prompt_numbers(given)
    given["prompt_ids"] = given["prompt_ids"][:1].expand(len(index), -1)
    given["repeated_batch"] = {
        "message_log": [[{"role": "user", "pixel_values": object()}, {"role": "assistant"}] for _ in index],
        "extra_env_info": [{"visual_entropy": value[0] if value else float(i) / 3} for i in index],
        # of a synchronous rollout the row of the data set, and of an asynchronous one the place in the batch
        "idx": list(range(len(index))),
    }
    return given


def test_one_question_on_two_images_is_two_prompts(names):
    given = batch()
    given["repeated_batch"] = {"extra_env_info": [{"visual_entropy": float(i) / 3} for i in prompt_numbers(given)]}
    expected = estimator(names).compute_advantage(**given)
    assert torch.equal(estimator(names).compute_advantage(**of_images(batch())), expected)


def test_an_entropy_for_every_rollout_is_refused(names):
    given = batch()
    infos = [{"visual_entropy": float(i)} for i in range(len(given["rewards"]))]
    given["repeated_batch"] = {"extra_env_info": infos}
    with pytest.raises(ValueError, match=r"^prompts: expected ids that the rollouts of a prompt share"):
        estimator(names).compute_advantage(**given)


def test_an_entropy_that_is_nan_is_none(names):
    """Each rollout of a prompt has a NaN of its own, which equals no other."""
    given = batch()
    infos = [{"visual_entropy": float("nan") if i % 2 else float(i)} for i in prompt_numbers(given).tolist()]
    given["repeated_batch"] = {"extra_env_info": infos}
    got = estimator(names).compute_advantage(**given)
    given["repeated_batch"] = {"extra_env_info": [info if info["visual_entropy"] >= 0 else None for info in infos]}
    assert torch.equal(got, estimator(names).compute_advantage(**given))
    assert bool(got.any())
    assert not torch.equal(got, estimator(names).compute_advantage(**batch()))


@pytest.mark.parametrize("value", [None, float("nan")])
def test_images_without_their_entropy_are_refused(names, value):
    """Two of them under one question would be one prompt."""
    with pytest.raises(ValueError, match=r"^extra_env_info: expected a visual_entropy"):
        estimator(names).compute_advantage(**of_images(batch(), value))


@pytest.mark.parametrize("missing", [None, torch.zeros(PROMPTS * ROLLOUTS, TOKENS)])
def test_placeholders_in_place_of_log_probabilities_are_refused(names, missing):
    """With ``force_on_policy_ratio`` they are 0, and every prompt would be in one bucket."""
    with pytest.raises(ValueError, match="force_on_policy_ratio"):
        estimator(names).compute_advantage(**{**batch(), "logprobs_policy": missing})


# --- in a checkout ------------------------------------------------------------------------------------


@pytest.fixture
def own(nemo_rl):
    """NeMo-RL's own estimator, with and without leave-one-out."""
    if nemo_rl is None:
        pytest.skip("NEMO_RL, the path of a checkout, is not given")
    from nemo_rl.algorithms import advantage_estimator

    kept = getattr(advantage_estimator, "AdvEstimatorConfig", dict)
    if kept is not dict and not hasattr(kept, "model_fields"):  # 0.7: a typed dict
        kept = dict

    def make(leave_one_out):
        config = kept(name="grpo", normalize_rewards=True, use_leave_one_out_baseline=leave_one_out)
        return advantage_estimator.GRPOAdvantageEstimator(config, None)

    return make


def in_its_own_dict(given):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    index = prompt_numbers(given)
    more = {"total_reward": given["rewards"], "idx": index.tolist(), "extra_env_info": [None] * len(index)}
    return {**given, "repeated_batch": BatchedDataDict(more)}


@pytest.mark.parametrize("images", [False, True])
def test_batches_of_an_asynchronous_rollout_keep_their_prompts(own, names, images):
    """NeMo-RL's own function makes them, which numbers its samples and calls that ``idx``."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict
    from nemo_rl.experience.rollouts import run_async_multi_turn_rollout

    given = of_images(batch()) if images else batch()
    index = prompt_numbers(batch()).tolist()
    sent = {
        "message_log": [[{"role": "user", "content": "?", "token_ids": row}] for row in given["prompt_ids"]],
        "extra_env_info": given["repeated_batch"].get("extra_env_info", [None] * len(index)),
        "task_name": ["math"] * len(index),
        "idx": index,
    }
    done, _ = run_async_multi_turn_rollout(None, BatchedDataDict(sent), None, {}, max_seq_len=64, max_rollout_turns=0)
    assert done["idx"] == list(range(len(index)))
    expected = estimator(names).compute_advantage(**given)
    assert torch.equal(estimator(names).compute_advantage(**{**given, "repeated_batch": done}), expected)
    assert bool(expected.any())


def test_the_grpo_component_is_nemo_rls_without_leave_one_out(own, names):
    given = in_its_own_dict(batch())
    expected = own(False).compute_advantage(**given) * given["mask"]
    got = estimator(names, weights=(1, 0, 0)).compute_advantage(**given)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert bool(expected.any())


def test_leave_one_out_is_no_weighting_of_ours(own, names):
    """What the page says of it: the only success among its rollouts is not scaled at all."""
    given = batch()
    index = prompt_numbers(given)
    given["rewards"] = torch.zeros_like(given["rewards"])
    for prompt in range(PROMPTS):
        given["rewards"][(index == prompt).nonzero()[0]] = 1.0
    theirs = own(True).compute_advantage(**given)[:, 0]
    ours = estimator(names, weights=(1, 0, 0)).compute_advantage(**given).amax(1)
    single = given["rewards"] == 1
    torch.testing.assert_close(theirs[single], torch.ones(PROMPTS), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[single], torch.full((PROMPTS,), 1.5), rtol=1e-5, atol=0)  # 0.75 / 0.5


def test_nemo_rl_makes_the_example_where_its_configuration_says_grpo(nemo_rl, own, names, monkeypatch):
    made = type(own(False))
    config = {"name": "grpo", "normalize_rewards": True, "use_leave_one_out_baseline": False}
    master = SimpleNamespace(grpo=SimpleNamespace(adv_estimator=SimpleNamespace(**config)), loss_fn=None)
    if not hasattr(nemo_rl.MasterConfig.model_fields["grpo"].annotation, "model_fields"):  # 0.7
        master.grpo = {"adv_estimator": config}
    assert type(nemo_rl._create_advantage_estimator(master)) is made
    monkeypatch.setattr(nemo_rl, "GRPOAdvantageEstimator", names["DurianAdvantageEstimator"])
    assert type(nemo_rl._create_advantage_estimator(master)) is names["DurianAdvantageEstimator"]


def test_every_trainer_of_nemo_rl_passes_what_the_example_takes(nemo_rl, own):
    """GRPO trainers, all with an estimator that ``_create_advantage_estimator`` makes, and by name alone."""
    folder = Path(nemo_rl.__file__).parent
    for path in (folder / "grpo.py", folder / "grpo_sync.py", folder / "single_controller.py"):
        if not path.exists():  # 0.7 has no single controller of its own
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "compute_advantage"
        ]
        assert calls
        for call in calls:
            assert not call.args
            assert {"prompt_ids", "rewards", "mask", "repeated_batch"} <= {word.arg for word in call.keywords}
    makers = [path.name for path in folder.rglob("*.py") if "= _create_advantage_estimator(" in path.read_text()]
    assert set(makers) <= {"grpo.py", "grpo_sync.py", "setup.py", "ppo.py"}
    assert {"grpo.py", "grpo_sync.py"} <= set(makers)
