"""Left-packed text: every token keeps its own log-probability, in Unsloth's own arithmetic."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unsloth_zoo.rl_replacements import RL_REPLACEMENTS

from durian_adv.adapters.trl import forward

PAD = 0
pads_in_prompt, packed, counted = (
    RL_REPLACEMENTS[name]
    for name in ("calculate_pad_tokens_in_prompt", "left_pack_padding", "create_completion_attention_mask")
)


@st.composite
def batches(draw):
    """Prompts padded on the left, completions on the right; a completion may hold padding tokens of its own."""
    lengths = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5))
    widest, longest = (max(column) for column in zip(*lengths, strict=True))
    prompts = torch.zeros(len(lengths), widest, dtype=torch.int64)
    completions = torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, (prompt, completion) in enumerate(lengths):
        prompts[row, widest - prompt :] = 1
        completions[row, :completion] = torch.tensor(
            draw(st.lists(st.integers(0, 2), min_size=completion, max_size=completion))
        )
    return prompts, completions


@settings(max_examples=200, deadline=None)
@given(batches())
def test_tokens_keep_their_log_probabilities(batch):
    prompts, completions = batch
    ids = torch.cat([prompts, completions], 1)
    left = pads_in_prompt(ids, completions.shape[1], PAD)
    window = completions.shape[1] + int(left.max())
    # a value of its own for each token, moved as Unsloth moves tokens; the columns that its forward returns
    values = torch.arange(1.0, ids.numel() + 1).view_as(ids)
    moved = packed(torch.where(ids == PAD, 0, values.long()), 0)[:, -window:].float()
    output = {"prompt_ids": prompts, "completion_ids": completions, "max_left_pad": left.max().repeat(len(ids), 1)}
    found = forward.of_completions(moved, output, PAD)
    real = completions != PAD
    assert torch.equal(found.isnan(), ~real)
    assert torch.equal(found[real], values[:, prompts.shape[1] :][real])
    # those that Unsloth's own loss counts, in its own order
    mask = counted(packed(ids, PAD)[:, -window:], left, int(left.max()), PAD)
    assert torch.equal(moved[mask], found[real])


def test_another_width_is_not_taken():
    output = {"prompt_ids": torch.ones(2, 3), "completion_ids": torch.ones(2, 4), "max_left_pad": torch.tensor([[1]])}
    assert forward.of_completions(torch.zeros(2, 5), output, PAD) is not None
    assert forward.of_completions(torch.zeros(2, 6), output, PAD) is None
    assert forward.of_completions(torch.zeros(2, 4), output, PAD) is None
    del output["max_left_pad"]
    assert forward.of_completions(torch.zeros(2, 5), output, PAD) is None
