"""verifiers before its version 1: ``results.jsonl``, one rollout per line."""

from durian_adv.data.logs.formats.base import Format, has

FORMAT = Format(
    "verifiers",
    "verifiers results",
    has("example_id", "prompt", "completion", "reward"),
    {"prompt": "example_id", "label": "prompt"},
)
