"""SkyRL: dumped evaluations, one rollout per line. Its dumped training batches are pickles, which are refused."""

from durian_adv.data.logs.formats.base import Format, has

FORMAT = Format(
    "skyrl",
    "SkyRL evaluations",
    has("input_prompt", "output_response", "score"),
    # one text may be asked in several environments, or with another answer
    {"prompt": "input_prompt+env_extras", "reward": "score", "label": "input_prompt", "category": "data_source"},
)
