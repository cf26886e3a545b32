"""Prompts, turns and rollouts: what belongs together, in ms-swift's own ways to lay them out."""

import copy
import math

import pytest
import recording
import tiny
import torch
from rollout_logs import concluded, rows_of
from swift.rl_core.advantage import compute_advantages_dynamic

from durian_adv.estimator import AdvantageEstimator


class Splitting(recording.Recorded):
    """A stand-in for a vLLM server whose scheduler makes a row of every turn: it needs a GPU, the rest is ms-swift's.

    The completions of even rows get a second row, whose prompt goes on with the first.
    """

    def _postprocess_rollout_outputs(self, samples, outputs):
        self.dynamic_num_samples = True
        made = []
        for number, (sample, output) in enumerate(zip(samples, outputs, strict=True)):
            output.response.id = sample.request_id
            made.append(output)
            if number % 2 == 0:
                second = copy.deepcopy(output)
                text = output.response.choices[0].message.content
                second.messages = [*sample.messages, {"role": "assistant", "content": text}]
                second.messages += [
                    {"role": "user", "content": "Sure?"},
                    {"role": "assistant", "content": "Yes" * (number + 1)},
                ]
                made.append(second)
        return super()._postprocess_rollout_outputs(samples, made)


@pytest.fixture
def splitting(monkeypatch):
    from swift.trainers.trainer_factory import TrainerFactory

    monkeypatch.setattr(recording, "Recorded", Splitting)
    return TrainerFactory


def test_a_conversation_of_several_turns_is_one_completion(train, tmp_path):
    durian = {**tiny.BUCKETS, "durian_rollout_log": str(tmp_path / "log")}
    run = train(multi_turn_scheduler="asks", max_turns=2, max_steps=2, durian=durian)
    texts = {row["text"] for rows in rows_of(tmp_path / "log").values() for row in rows}
    assert {text.replace("\n", "").removeprefix("<image>").removesuffix("Sure?")[:7] for text in texts} == {"What is"}
    for batch in run.batches:
        turns = [sample.rollout_infos["num_turns"] for sample in batch["samples"]]
        assert set(turns) == {1, 2}  # ms-swift ends with a turn that is cut off
        assert batch["rollouts"] is not None
        tokens = [int(mask.sum()) for grpo in batch["batches"] for mask in grpo.completion_mask]
        assert tokens == [int(mask.sum()) for mask in batch["scores"]["mask"]]
        assert [len(sample.response_token_ids) for sample in batch["samples"]] == turns
        right = AdvantageEstimator(**run.trainer._estimator.options)(
            batch["rewards"], [i // 4 for i in range(16)], **batch["scores"]
        )
        assert torch.equal(batch["advantages"], right)
        assert batch["advantages"].any()


def test_images_that_a_scheduler_returns_are_refused_and_a_column_goes_without_them(train):
    """They are one completion's, and would change the difficulty of its prompt."""
    given = {"multi_turn_scheduler": "shows", "max_turns": 2}
    with pytest.raises(ValueError, match=r"^visual_entropy: expected a column of the dataset, as a scheduler returns"):
        train(**given)
    run = train(tiny.rows(visual_entropy=[float(k) for k in range(8)]), **given)
    assert {len(sample.images) for batch in run.batches for sample in batch["samples"]} == {1, 2}
    assert all(batch["advantages"].any() for batch in run.batches)


def test_rows_of_one_rollout_count_once_and_share_its_advantage(train, splitting):
    run = train(
        tiny.rows(script=[[0, 0.25, 1, 1]] * 8), reward_funcs=["by_request"], durian={"durian_weights": [1, 0, 0]}
    )
    (batch,) = run.batches
    assert len(batch["advantages"]) == 24
    by_rollout = {}
    for prompt, rollout, reward, advantage in zip(
        batch["prompts"], batch["rollouts"], batch["rewards"].tolist(), batch["advantages"].tolist(), strict=True
    ):
        by_rollout.setdefault(prompt, {}).setdefault(rollout, set()).add((reward, advantage))
    assert len(by_rollout) == 4
    for rollouts in by_rollout.values():
        assert len(rollouts) == 4
        pairs = [pair for (pair,) in rollouts.values()]  # one reward and one advantage for each rollout
        rewards = torch.tensor([reward for reward, _ in pairs], dtype=torch.float64)
        right = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert [advantage for _, advantage in pairs] == pytest.approx(right.tolist(), abs=1e-5)
    torch.testing.assert_close(batch["advantages"], batch["of_swift"], atol=1e-5, rtol=1e-5)


def test_the_confidence_of_a_rollout_is_that_of_all_its_rows(train, splitting):
    run = train(reward_funcs=["by_request"])
    (batch,) = run.batches
    sums = {}
    for rollout, confidence in zip(batch["rollouts"], batch["confidence"].tolist(), strict=True):
        sums[rollout] = sums.get(rollout, 0.0) + confidence
    first = {rollout: place for place, rollout in reversed(list(enumerate(batch["rollouts"])))}
    places = list(first.values())
    right = AdvantageEstimator(**run.trainer._estimator.options)(
        batch["rewards"][places],
        [batch["prompts"][place] for place in places],
        confidence=[sums[rollout] for rollout in first],
        visual_entropy=batch["scores"]["visual_entropy"][places],
    )
    got = dict(zip(batch["rollouts"], batch["advantages"].tolist(), strict=True))
    assert [got[rollout] for rollout in first] == pytest.approx(right.tolist(), abs=1e-5)
    assert any(got.values())


def test_the_same_question_about_another_image_is_another_prompt(train, splitting):
    rows = [{"pictures": [tiny.photograph(k / 3, k)], "question": "How many?", "script": [k % 2] * 4} for k in range(4)]
    run = train(rows, reward_funcs=["written"], durian={"durian_weights": [1, 0, 0]})
    (batch,) = run.batches
    assert len(set(batch["prompts"])) == 4
    assert not batch["advantages"].any()
    assert not batch["of_swift"].any()  # whose groups are by the same ids, which know images now
    assert batch["metrics"]["durian/no_signal_share"] == 1
    questions = ["How many?"] * len(batch["rollouts"])  # what ms-swift's own ids tell apart
    own, _ = compute_advantages_dynamic(batch["per_func"], torch.ones(1), questions, batch["rollouts"])
    assert own.abs().min() > 0.9


def test_the_same_prompt_has_one_id_in_every_batch_and_every_way_to_give_an_image(train):
    run = train(max_steps=4)
    ids = {}
    for batch in run.batches:
        for sample in batch["samples"]:
            ids.setdefault(sample.extra["number"], set()).add(sample.prompt_id)
    assert len(ids) == 8
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == 8
    trainer, sample = run.trainer, copy.deepcopy(run.batches[0]["samples"][0])

    def name(**parts):
        one = copy.copy(sample)
        for part, value in parts.items():
            setattr(one, part, value)
        return trainer._add_prompt_id_to_inputs([one])[0].prompt_id

    picture = tiny.photograph(0.5, 1)
    same = [[picture], [picture.copy()]]
    assert len({name(images=images) for images in same}) == 1
    assert name(images=[{"bytes": b"a", "path": None}]) == name(images=[{"bytes": b"a", "path": None}])
    others = [
        [picture],
        [tiny.photograph(0.5, 2)],
        [picture, picture],
        [picture.resize((42, 168))],
        [],
        ["a.png"],
        [{"bytes": b"a"}],
    ]
    assert len({name(images=images) for images in others}) == len(others)
    assert name(tools=["a"]) != name(tools=["b"])


def test_a_prompt_drawn_twice_is_two_groups(train, tmp_path):
    tiny.photograph(0.5, 1).save(tmp_path / "one.png")
    rows = [{"images": [str(tmp_path / "one.png")], "question": "Why?", "script": [0, 1, 1, 0.5]}] * 4
    run = train(rows, reward_funcs=["written"])
    (batch,) = run.batches
    assert len(set(batch["prompts"])) == 1
    assert batch["metrics"]["durian/prompts"] == 4
    assert not any(map(math.isnan, batch["scores"]["visual_entropy"].tolist()))


def test_the_log_of_a_run_has_what_its_updates_had(train, tmp_path):
    rows = tiny.rows(category=[f"kind {k % 2}" for k in range(8)], script=[[-1, 1, k / 8, 0] for k in range(8)])
    rows[3].pop("pictures")
    run = train(
        rows,
        reward_funcs=["written"],
        max_steps=3,
        durian={**tiny.BUCKETS, "durian_rollout_log": str(tmp_path / "log")},
    )
    files = rows_of(tmp_path / "log")
    assert list(files) == [f"step_{n:08d}.parquet" for n in (1, 2, 3)]
    ids = {}
    for logged, batch in zip(files.values(), run.batches, strict=True):
        assert [row["advantage"] for row in logged] == batch["advantages"].tolist()
        assert [row["valid"] for row in logged] == [False, True, True, True] * 4
        assert [row["reward"] for row in logged[1::4]] == [1] * 4
        assert [row["confidence"] for row in logged[1:4]] == pytest.approx(batch["confidence"][1:4].tolist(), abs=1e-4)
        for row, sample in zip(logged, batch["samples"], strict=True):
            number = int(sample.extra["number"])
            assert f"in {number}?" in row["text"]
            assert row["category"] == f"kind {number % 2}"
            assert (row["visual_entropy"] is None) == (number == 3)
            ids.setdefault(number, set()).add(row["prompt"])
    assert len(ids) == len(set.union(*ids.values())) == 8
    assert concluded(tmp_path / "log", num_confidence_buckets=2, entropy_quantiles=(0.5,)).tone != "none"


def test_the_log_has_a_row_for_a_rollout_of_several(train, splitting, tmp_path):
    run = train(reward_funcs=["by_request"], durian={**tiny.BUCKETS, "durian_rollout_log": str(tmp_path / "log")})
    (batch,), (rows,) = run.batches, rows_of(tmp_path / "log").values()
    first = {rollout: place for place, rollout in reversed(list(enumerate(batch["rollouts"])))}
    assert sorted(row["rollout"] for row in rows) == sorted(first.values())
    for row in rows:
        assert row["advantage"] == batch["advantages"][row["rollout"]]
        assert row["prompt"] == batch["prompts"][row["rollout"]]
