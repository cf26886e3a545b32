"""EasyR1: ``generations.log``, blocks of text, written by validations only; a prompt is its text and its answer."""

from durian_adv.data.logs.formats.base import Format

FORMAT = Format(
    "easyr1",
    "EasyR1 generations",
    lambda row: list(row) == ["prompt", "output", "ground_truth", "score"],
    {"prompt": "prompt+ground_truth", "reward": "score", "label": "prompt"},
)
