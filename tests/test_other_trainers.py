"""The page "Any other trainer", and its example for slime and miles, on the fields and calls that these had.

With ``SLIME`` or ``MILES``, the path of a checkout, and what it needs installed, the trainer's own ``Sample`` and
conversion to training data are used; neither is on PyPI. Examples for trainers that are: tests/others.
"""

import ast
import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from elsewhere import EXAMPLES, PAGE, checkout, example

from durian_adv import durian_advantage, sequence_confidence

ARGS = SimpleNamespace(reward_key=None)


@dataclass
class Pinned:
    """Fields of ``Sample`` that the example reads: slime 0.3.1, revision 624b824, and miles, revision 31f1ca9."""

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    response_length: int = 0
    reward: float | dict | None = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    remove_sample: bool = False
    metadata: dict = field(default_factory=dict)

    def get_reward_value(self, args):
        return self.reward if not args.reward_key else self.reward[args.reward_key]


@pytest.fixture(scope="module", params=["slime", "miles"])
def sample(request):
    path = checkout(request.param.upper())
    if path is None:
        return Pinned
    types = pytest.importorskip(f"{request.param}.utils.types")
    assert {name: type(value) for name, value in vars(Pinned()).items()}.items() <= {
        name: type(value) for name, value in vars(types.Sample()).items()
    }.items()
    return types.Sample


@pytest.fixture(scope="module")
def rewards():
    return example("slime")["rewards"]


def samples(made, prompts=16, rollouts=4):
    draw = torch.Generator().manual_seed(0)
    out = []
    for at in torch.randperm(prompts * rollouts, generator=draw).tolist():
        prompt, length = at // rollouts, 1 + at % 5
        out.append(
            made(
                group_index=7 * prompt,  # ids go on from step to step
                index=at,
                rollout_id=[None, 10 * at][prompt % 2],
                response_length=length,
                reward=float(at % (prompt + 1) == 0),
                loss_mask=None if at % 3 else [1] * length,
                rollout_log_probs=(-torch.rand(length, generator=draw)).tolist(),
                metadata=[{}, {"visual_entropy": None}, {"visual_entropy": prompt / 3}][min(prompt % 4, 2)],
            )
        )
    return out


# --- the page -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_at_most_25_lines(name):
    assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= 25
    assert max(map(len, EXAMPLES[name].splitlines())) <= 120


def test_every_trainer_of_the_table_has_its_section():
    table = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE.read_text(), re.MULTILINE)
    sections = {re.sub(r"\W+", "-", title.lower()) for title in re.findall("^## (.+)$", PAGE.read_text(), re.MULTILINE)}
    assert len(table) == 8
    assert {section for _, section in table} <= sections


@pytest.mark.parametrize("name", ["slime", "miles", "NeMo_RL", "rLLM", "prime_rl", "torchtitan"])
def test_a_checkout_is_the_revision_that_the_page_names(name):
    path = os.environ.get(name.upper())
    if not path:
        pytest.skip(f"{name.upper()}, the path of a checkout, is not given")
    said = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    (row,) = re.findall(rf"^\| \[{name.replace('_', '-')}\].*$", PAGE.read_text(), re.MULTILINE)
    assert said[:7] in row


# --- slime and miles ----------------------------------------------------------------------------------


def test_the_example_gives_the_librarys_advantages(rewards, sample):
    given = samples(sample)
    raw, got = rewards(ARGS, given)
    assert raw == [one.reward for one in given]
    entropy = [one.metadata.get("visual_entropy") or math.nan for one in given]
    expected = durian_advantage(
        torch.tensor(raw, dtype=torch.float64),
        prompt_index=torch.tensor([one.group_index for one in given]),
        visual_entropy=torch.tensor(entropy, dtype=torch.float64),
        confidence=torch.stack(
            [sequence_confidence(torch.tensor(one.rollout_log_probs, dtype=torch.float64)) for one in given]
        ),
    )
    assert got == expected.tolist()
    assert any(got)


ABORTED = {"group_index": None, "reward": None, "rollout_log_probs": None, "loss_mask": None, "response_length": 0}


@pytest.mark.parametrize("reward_key", [None, "score"])
@pytest.mark.parametrize(
    "missing",
    [ABORTED, *({name: ABORTED[name]} for name in ("group_index", "reward", "rollout_log_probs")), {"metadata": None}],
    ids=["everything", "group", "reward", "log-probabilities", "nothing but metadata"],
)
def test_an_aborted_sample_gets_0_and_changes_nothing_else(rewards, sample, missing, reward_key):
    args = SimpleNamespace(reward_key=reward_key)

    def scored(value):
        return {"score": value, "other": 9.0} if reward_key and value is not None else value

    def batch():
        made = samples(sample)
        for one in made:
            one.reward = scored(one.reward)
        return made

    given = batch()
    whole = {"group_index": 7, "reward": scored(0.0), "rollout_log_probs": [-0.5, -9.0]}
    whole |= {"loss_mask": [1, 1], "response_length": 2}
    _, changed = rewards(args, [*given, sample(**whole, index=999, rollout_id=999)])
    clean_raw, clean = rewards(args, batch())
    assert changed[:-1] != clean  # else the rest would show nothing
    for at in (0, 17, 40):
        given.insert(at, sample(**(whole | missing), index=1000 + at, rollout_id=1000 + at))
    raw, got = rewards(args, given)
    own = [got.pop(at) for at in (40, 17, 0)]
    assert [raw.pop(at) for at in (40, 17, 0)] == [0, 0, 0]
    assert raw == clean_raw
    if missing == {"metadata": None}:
        assert 0 not in own
    else:
        assert own == [0, 0, 0]
        assert got == clean


def test_a_batch_without_log_probabilities_is_an_error_and_not_zeros(rewards, sample):
    given = samples(sample)
    for one in given:
        one.rollout_log_probs, one.metadata = None, {}
    with pytest.raises(ValueError, match=r"^confidence or visual_entropy: .* got none that is known"):
        rewards(ARGS, given)


def test_removed_and_unscored_samples_influence_nothing(rewards, sample):
    given = samples(sample)
    _, clean = rewards(ARGS, [one for at, one in enumerate(given) if at not in (3, 8)])
    given[3].remove_sample, given[3].reward = True, 1e30
    given[8].reward = None
    raw, got = rewards(ARGS, given)
    assert raw[8] == got[3] == got[8] == 0
    assert [value for at, value in enumerate(got) if at not in (3, 8)] == clean


def test_masked_tokens_do_not_count(rewards, sample):
    given = samples(sample)
    _, before = rewards(ARGS, given)
    for one in given:
        one.loss_mask = [1] * one.response_length + [0, 0]
        one.rollout_log_probs = [*one.rollout_log_probs, -1e6, -1e6]
        one.response_length += 2
    assert rewards(ARGS, given)[1] == before


def split(one, made):
    """A rollout that was compacted into two samples: what its rollout function returns in its place."""
    parts = [slice(0, one.response_length // 2), slice(one.response_length // 2, None)]
    given = {"group_index": one.group_index, "index": one.index, "reward": one.reward, "metadata": one.metadata}
    return [
        made(
            **given,
            rollout_id=one.index,
            response_length=len(one.rollout_log_probs[part]),
            rollout_log_probs=one.rollout_log_probs[part],
        )
        for part in parts
    ]


def test_the_samples_of_one_rollout_count_once(rewards, sample):
    given = samples(sample)
    _, whole = rewards(ARGS, given)
    rows = [split(one, sample) if one.index % 3 == 0 and one.response_length > 1 else [one] for one in given]
    _, got = rewards(ARGS, [one for row in rows for one in row])
    sizes = [len(row) for row in rows]
    assert max(sizes) == 2
    expected = torch.tensor(whole, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)


def test_samples_of_one_rollout_that_disagree_are_refused(rewards, sample):
    given = [part for one in samples(sample, 2, 2) for part in split(one, sample)]
    given[0].reward += 1
    with pytest.raises(ValueError, match="rollout"):
        rewards(ARGS, given)


# --- in a checkout ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slime():
    path = checkout("SLIME")
    if path is None:
        pytest.skip("SLIME, the path of a checkout, is not given")
    return path


def test_slimes_own_conversion_takes_what_the_example_returns(slime, rewards):
    source = (slime / "slime/ray/rollout.py").read_text()
    assert "self.custom_reward_post_process_func(self.args, samples)" in source
    methods = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and node.name in ("_post_process_rewards", "_convert_samples_to_train_data")
    ]
    from slime.utils.data import get_source
    from slime.utils.types import Sample

    space = {"torch": torch, "Sample": Sample, "get_source": get_source}
    exec("\n".join(map(ast.unparse, methods)), space)
    manager = SimpleNamespace(
        args=SimpleNamespace(reward_key=None, rollout_top_p=1.0),
        custom_reward_post_process_func=rewards,
        custom_convert_samples_to_train_data_func=None,
    )
    manager._post_process_rewards = lambda given: space["_post_process_rewards"](manager, given)
    data = space["_convert_samples_to_train_data"](manager, samples(Sample))
    raw, advantages = rewards(ARGS, samples(Sample))
    assert data["rewards"] == advantages
    assert data["raw_reward"] == raw
    utilities = ast.parse((slime / "slime/utils/ppo_utils.py").read_text())
    (spread,) = (n for n in utilities.body if isinstance(n, ast.FunctionDef) and n.name == "get_grpo_returns")
    exec(ast.unparse(spread), space)
    returns = space["get_grpo_returns"](
        torch.tensor(data["rewards"]), [torch.zeros(n) for n in data["response_lengths"]]
    )
    for one, value in zip(returns, advantages, strict=True):
        assert bool((one == torch.tensor(value)).all())


@pytest.fixture(scope="module")
def miles():
    if checkout("MILES") is None:
        pytest.skip("MILES, the path of a checkout, is not given")
    conversion = pytest.importorskip("miles.ray.rollout.train_data_conversion")
    return conversion, pytest.importorskip("miles.ray.rollout.rollout_data_conversion")


MILES_ARGS = SimpleNamespace(
    reward_key=None,
    advantage_estimator="grpo",
    rewards_normalization=True,
    grpo_std_normalization=True,
    disable_rollout_trim_samples=True,
    use_dynamic_global_batch_size=False,
    multi_lora=False,
    multi_lora_n_adapters=0,
)


def nested(made):
    """A step as a rollout function of miles returns it: groups of rollouts, of which some are lists of samples."""
    groups = {}
    for one in samples(made):
        one.rollout_id = one.index
        parts = split(one, made) if one.index % 3 == 0 and one.response_length > 1 else [one]
        groups.setdefault(one.group_index, []).append(parts)
    return list(groups.values())


def converted(miles, data, function):
    conversion, flat = miles
    rows, metadata = flat.postprocess_rollout_data(MILES_ARGS, data, train_parallel_config=None)
    return rows, conversion.convert_samples_to_train_data(MILES_ARGS, rows, metadata, None, function)


def test_miles_own_conversion_takes_what_the_example_returns_of_nested_samples(miles, rewards):
    from miles.utils.types import Sample

    rows, data = converted(miles, nested(Sample), rewards)
    raw, advantages = rewards(ARGS, rows)
    assert len(rows) > 64
    assert data["rewards"] == advantages
    assert data["raw_reward"] == raw
    assert any(advantages)


def test_the_grpo_component_is_miles_own_on_nested_samples(miles):
    from miles.utils.types import Sample

    names = example("slime")
    names["estimator"].options["weights"] = (1.0, 0.0, 0.0)
    _, own = converted(miles, nested(Sample), None)
    _, ours = converted(miles, nested(Sample), names["rewards"])
    torch.testing.assert_close(torch.tensor(ours["rewards"]), torch.tensor(own["rewards"]), rtol=0, atol=2e-6)
    assert any(own["rewards"])
