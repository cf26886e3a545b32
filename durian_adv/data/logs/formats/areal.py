"""AReaL: ``rollout/VERSION/TASK.jsonl``, one rollout per line; a task is a prompt, and its step the newest version."""

from durian_adv.data.logs.formats.base import Format, has

FORMAT = Format(
    "areal",
    "AReaL rollouts",
    has("task_id", "sample_idx", "tail_version", "reward"),
    {"prompt": "task_id", "step": "tail_version", "label": "prompt"},
)
