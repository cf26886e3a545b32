"""Operators that compilers cannot look into: what torch asks of one, and of the tensors that stand for its results."""

from __future__ import annotations

import pytest
import torch

import durian_adv  # noqa: F401  # which registers them

IMAGES, MASK = torch.rand(3, 5, 4), torch.rand(3, 5) > 0.3
PACKED, LENGTHS = torch.rand(9, 4), torch.tensor([5, 4])
ARGUMENTS = {
    "padded_entropy": [(IMAGES, MASK, False), (IMAGES.double(), None, True), (IMAGES[0], None, False)],
    "packed_entropy": [(PACKED, LENGTHS, False), (PACKED.half(), LENGTHS, True)],
    "entropy_intervals": [(IMAGES, MASK, None), (PACKED, None, LENGTHS)],
    "entropy_buckets": [(IMAGES, None, None, 3, []), (PACKED, None, LENGTHS, 0, [0.5])],
    "as_bytes": [(MASK,), (MASK.t(),)],
    "transposed": [(IMAGES[0], torch.float64), (IMAGES[0].t(), torch.float32)],
}


@pytest.mark.parametrize(("name", "arguments"), [(name, one) for name, given in ARGUMENTS.items() for one in given])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_operator_is_what_its_registration_says(name, arguments):
    found = torch.library.opcheck(getattr(torch.ops.durian_adv, name).default, arguments)
    assert set(found.values()) == {"SUCCESS"}


def test_every_operator_is_here():
    names = {
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("durian_adv::")
    }
    assert names == set(ARGUMENTS)
