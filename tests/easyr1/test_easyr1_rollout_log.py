"""The log of ``durian.rollout_log``: what EasyR1's batch had when its advantages were computed."""

import batches
import numpy as np
import pytest
from rollout_logs import concluded, rows_of

from durian_adv.adapters.easyr1.batch import put_advantages
from durian_adv.data.logs.writer import RolloutLog
from durian_adv.estimator import AdvantageEstimator


@pytest.mark.parametrize("name", ["durian", "grpo"])
def test_a_batch_is_written_as_it_was_normalized(tmp_path, name):
    estimator = AdvantageEstimator(estimator=name, num_confidence_buckets=3)
    log = RolloutLog(tmp_path / "log")
    for step in (4, 5):
        data = batches.batch(batches.binary(24, 4, seed=step), seed=step, entropy=[None, *range(23)], images=True)
        numbers = batches.numbers(data.non_tensor_batch["uid"]).tolist()
        kinds = np.array([f"kind {i % 2}" for i in numbers], dtype=object)
        data.non_tensor_batch["category"] = kinds
        if step == 5:
            data.non_tensor_batch["prompt_id"] = np.array(numbers, dtype=object)
        put_advantages(data, estimator, log, step)
        rows = rows_of(tmp_path / "log")[f"step_{step:08d}.parquet"]
        assert [row["advantage"] for row in rows] == data.batch["advantages"][:, 0].tolist()
        assert any(row["advantage"] for row in rows)
        assert [row["reward"] for row in rows] == data.batch["token_level_rewards"].sum(-1).tolist()
        columns = data.non_tensor_batch
        assert [row["prompt"] for row in rows] == [str(i) for i in columns["uid" if step == 4 else "prompt_id"]]
        assert [row["category"] for row in rows] == kinds.tolist()
        # with a weight or without
        assert [row["visual_entropy"] for row in rows] == columns["visual_entropy"].tolist()
        assert None not in [row["confidence"] for row in rows]
    assert concluded(tmp_path / "log", num_confidence_buckets=3).tone != "none"
