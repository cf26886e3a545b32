"""Reward functions in verl's form: the share of letters in a response, in eighths."""


def letters(data_source, solution_str, ground_truth, extra_info=None, **_):
    return sum(character.isalpha() for character in solution_str[:8]) / 8


def letters_and_entropy(data_source, solution_str, ground_truth, extra_info=None, **_):
    """As above, with the entropy that the dataset has, which verl then carries everywhere."""
    score = letters(data_source, solution_str, ground_truth)
    return {"score": score, "visual_entropy": (extra_info or {}).get("its_entropy")}
