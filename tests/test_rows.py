"""From what trainers have to tensors: every form of numbers, ids and tokens, and every message."""

import math
import warnings

import numpy as np
import pytest
import torch

from durian_adv import ArgumentError
from durian_adv._src import rows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rows.numbers("x", "12", 2), "x: expected a tensor, an array or a list of numbers, got str"),
        (lambda: rows.numbers("x", 1.0, None), "x: expected a tensor, an array or a list of numbers, got float"),
        (lambda: rows.numbers("x", torch.zeros(()), None), "x: expected one entry per row, got shape ()"),
        (lambda: rows.numbers("x", [1.0], 2), "x: expected 2 entries, one per row, got shape (1,)"),
        (lambda: rows.numbers("x", torch.zeros(2, 1), 2), "x: expected shape (N,), got (2, 1)"),
        (
            lambda: rows.ids("x", torch.zeros(1, 1, 1), 1, CPU),
            "x: expected shape (N,), or (N, K) where a row is an id, got (1, 1, 1)",
        ),
        (
            lambda: rows.numbers("x", torch.zeros(1, dtype=torch.complex64), 1, CPU),
            "x: expected a real dtype, got torch.complex64",
        ),
        (
            lambda: rows.tokens(torch.zeros(1, 2, dtype=torch.complex64), None, 1, CPU),
            "logprobs: expected a real dtype, got torch.complex64",
        ),
        (
            lambda: rows.ids("x", torch.zeros(1, dtype=torch.complex64), 1, CPU),
            "x: expected a real dtype, got torch.complex64",
        ),
        (lambda: rows.ids("x", torch.zeros(1), 2, CPU), "x: expected 2 entries, one per row, got shape (1,)"),
        (lambda: rows.ids("x", "ab", 2, CPU), "x: expected a tensor, an array or a list, one entry per row, got str"),
        (lambda: rows.ids("x", ["a"], 2, CPU), "x: expected 2 entries, one per row, got 1"),
        (lambda: rows.tokens(torch.zeros(2), None, 2, CPU), "logprobs: expected shape (N, T), got (2,)"),
        (
            lambda: rows.tokens(torch.zeros(1, 2), None, 2, CPU),
            "logprobs: expected 2 entries, one per row, got shape (1, 2)",
        ),
        (
            lambda: rows.tokens(torch.zeros(2, 3), torch.ones(2), 2, CPU),
            "mask: expected shape (N, T), got (2,)",
        ),
        (
            lambda: rows.tokens(torch.zeros(2, 3), torch.ones(1, 3), 2, CPU),
            "mask: expected 2 entries, one per row, got shape (1, 3)",
        ),
        (
            lambda: rows.tokens(torch.zeros(2, 3), torch.ones(2, 2), 2, CPU),
            "mask: expected shape logprobs.shape = (2, 3), got (2, 2)",
        ),
        (
            lambda: rows.tokens([[0.0], [0.0]], [[1]], 2, CPU),
            "mask: expected 2 entries, one per row, got 1",
        ),
        (
            lambda: rows.tokens([[0.0], [0.0, 1.0]], [[1], [1]], 2, CPU),
            "mask[1]: expected 2 tokens, as logprobs[1], got 1",
        ),
        (
            lambda: rows.tokens([[0.0]], [["x"]], 1, CPU),
            "mask[0]: expected numbers or None, got could not convert string to float: 'x'",
        ),
        (
            lambda: rows.has_tokens([["x"]], 1, CPU),
            "mask[0]: expected numbers or None, got could not convert string to float: 'x'",
        ),
        (
            lambda: rows.has_tokens(torch.ones(1, 2), 2, CPU),
            "mask: expected 2 entries, one per row, got shape (1, 2)",
        ),
        (
            lambda: rows.tokens([5], None, 1, CPU),
            "logprobs[0]: expected a tensor, an array or a list of numbers, got int",
        ),
        (
            lambda: rows.tokens(np.array([["x"]]), None, 1, CPU),
            "logprobs[0]: expected numbers or None, got could not convert string to float: np.str_('x')",
        ),
        (
            lambda: rows.numbers("x", np.array(1.0), None),
            "x: expected one entry per row, got shape ()",
        ),
        (
            lambda: rows.tokens([torch.zeros(1, 2)], None, 1, CPU),
            "logprobs[0]: expected one number per token, got shape (1, 2)",
        ),
    ],
)
def test_a_message_says_what_was_expected_and_what_came(call, message):
    with pytest.raises(ArgumentError) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        (["b", None, "a", "b", math.nan], [1, -1, 0, 1, -1], ["a", "b"]),
        ([2, "1", 1, 2], [1, 2, 0, 1], [1, 2, "1"]),
        ([(1, "b"), (1, "a")], [1, 0], [(1, "a"), (1, "b")]),
        (torch.tensor([5, -3, 5]), [1, 0, 1], [-3, 5]),
        (torch.tensor([1.0, math.nan, 0.0]), [1, -1, 0], None),
        (torch.tensor([[1.0, 2.0], [1.0, math.nan], [0.0, 9.0]]), [1, -1, 0], None),
        (np.array(["b", "a"]), [1, 0], ["a", "b"]),
        (np.array([[1, 2], [0, 9]]), [1, 0], [[0, 9], [1, 2]]),
        (np.array([["x", "y"], ["x", "x"]]), [1, 0], [("x", "x"), ("x", "y")]),
    ],
)
def test_ids_are_numbered_by_their_order_as_values(values, numbers, names):
    found, known = rows.ids("x", values, len(values), CPU)
    assert found.dtype == torch.int64
    assert found.tolist() == numbers
    if names is not None:
        assert list(known) == names


def test_ids_that_cannot_be_compared_are_ordered_by_type_and_text():
    assert rows.ordered([b"z", "b", 3, "a", 1, b"a"]) == [b"a", b"z", 1, 3, "a", "b"]
    assert rows.ordered(["b", None, "a"]) == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padded_tokens_keep_their_dtype_and_ragged_ones_are_float64(dtype):
    values = torch.tensor([[-1.0, -2.0], [-3.0, -math.inf]]).to(dtype)
    padded = rows.tokens(values, None, 2, CPU)
    assert (padded.lengths, padded.logprobs.dtype) == (None, dtype)
    assert padded.mask.tolist() == [[True, True], [True, False]]
    assert (int(padded.nonfinite), int(padded.total)) == (1, 4)
    ragged = rows.tokens([values[0], None, values[1]], None, 3, CPU)
    assert (ragged.lengths, ragged.logprobs.dtype) == ([2, 0, 2], torch.float64)
    assert ragged.logprobs.tolist() == [-1.0, -2.0, -3.0, -math.inf]
    assert ragged.mask.tolist() == [True, True, True, False]
    assert (int(ragged.nonfinite), int(ragged.total)) == (1, 4)


def test_none_among_tokens_does_not_count_as_a_log_probability_nor_in_a_mask():
    found = rows.tokens([[-1.0, None, -3.0], [-1.0, -2.0]], [[1, 1, None], None], 2, CPU)
    assert found.mask.tolist() == [True, False, False, True, True]
    assert (int(found.nonfinite), int(found.total)) == (1, 4)
    assert rows.has_tokens([[None, 0], None, [0, 2], []], 4, CPU).tolist() == [False, True, True, False]
    assert rows.has_tokens(torch.tensor([[0, 0], [0, 3]]), 2, CPU).tolist() == [False, True]
    assert rows.has_tokens(np.array([[0, 0], [0, 3]]), 2, CPU).tolist() == [False, True]


def test_arrays_keep_their_dtype_and_are_read_whoever_may_write_to_them():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (np.float16, np.float32, np.float64, np.int32, np.uint8, np.bool_):
            values = np.array([1, 0], dtype)
            values.flags.writeable = False
            assert rows.numbers("x", values, 2).dtype == torch.from_numpy(np.zeros(1, dtype)).dtype
            assert rows.ids("x", values, 2, CPU)[0].tolist() == [1, 0]
            assert rows.tokens(np.broadcast_to(values, (3, 2)), None, 3, CPU).logprobs[2].tolist() == [1, 0]
    for dtype in (">f4", ">i8", np.longdouble):  # which torch has not
        assert rows.numbers("x", np.array([1, 300], dtype), 2).tolist() == [1, 300]
    assert rows.numbers("x", np.array([1, 300], np.longdouble), 2).dtype == torch.float64


def test_arrays_of_any_layout_are_read():
    wide = np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::-1]
    assert rows.tokens(wide, wide > 1, 2, CPU).mask.tolist() == [[True, False, False], [True, True, True]]
    assert rows.numbers("x", np.arange(6)[::-2], 3).tolist() == [5.0, 3.0, 1.0]
    assert rows.flags("x", np.array([1, 0]), 2, CPU).tolist() == [True, False]
    assert rows.flags("x", [True, None, 0, 2.5], 4, CPU).tolist() == [True, False, False, True]


def test_nothing_depends_on_the_default_device_or_dtype():
    given = ([[-1.0], None, [-2.0, None]], [[1], None, [1, 1]])
    right = rows.tokens(*given, 3, CPU)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = rows.tokens(*given, 3, CPU)
            padded = rows.tokens(torch.zeros(1, 2, device="cpu"), torch.ones(1, 2, device="cpu"), 1, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (padded.logprobs.device, padded.mask.device) == (CPU, CPU)
    assert found.lengths == right.lengths
    assert found.logprobs.dtype == torch.float64
    assert torch.equal(found.logprobs.nan_to_num(9.0), right.logprobs.nan_to_num(9.0))
    assert torch.equal(found.mask, right.mask)


def test_confidences_are_of_the_rows_that_are_usable_by_the_reduction_and_the_rollout():
    logprobs = [[-1.0, -3.0, None], [-50.0], [-2.0], None]
    options = {"usable": None, "rollout": None}
    found = rows.confidences(logprobs, None, 4, CPU, reduction="sum", **options)
    assert found.confidence.tolist()[:3] == [-4.0, -50.0, -2.0]
    assert math.isnan(found.confidence[3])
    assert (int(found.nonfinite), int(found.total)) == (1, 5)
    found = rows.confidences(logprobs, None, 4, CPU, reduction="mean", **options)
    assert found.confidence.tolist()[:3] == [-2.0, -50.0, -2.0]
    usable = torch.tensor([True, False, True, True])
    rollout = torch.tensor([0, 0, 1, 1])
    found = rows.confidences(logprobs, None, 4, CPU, reduction="sum", usable=usable, rollout=rollout)
    assert found.confidence.tolist() == [-4.0, -4.0, -2.0, -2.0]
    padded = torch.tensor([[-1.0, -3.0], [-50.0, 0.0]])
    found = rows.confidences(padded, None, 2, CPU, reduction="mean", usable=usable[:2], rollout=rollout[:2])
    assert found.confidence.tolist() == [-2.0, -2.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda device: [rows.numbers("x", [1.0, None], 2, device), rows.numbers("x", torch.zeros(2), 2, device)],
        lambda device: [rows.flags("x", [1, 0], 2, device), rows.flags("x", torch.ones(2), 2, device)],
        lambda device: [rows.ids("x", ["a", "b"], 2, device)[0], rows.ids("x", torch.zeros(2), 2, device)[0]],
        lambda device: [rows.has_tokens(torch.ones(2, 3), 2, device), rows.has_tokens([[1], None], 2, device)],
        lambda device: [
            value
            for given in (
                (torch.zeros(2, 3), None),
                (torch.zeros(2, 3), torch.ones(2, 3)),
                ([[0.0], [0.0]], [[1], [1]]),
            )
            for value in rows.tokens(*given, 2, device)
            if isinstance(value, torch.Tensor)
        ],
        lambda device: list(rows.confidences(torch.zeros(2, 3), None, 2, device, reduction="sum")),
    ],
    ids=["numbers", "flags", "ids", "has_tokens", "tokens", "confidences"],
)
def test_results_lie_on_the_device_of_the_rewards(call):
    # "meta" stands for a device that is not the CPU: it has shapes and no values
    assert {value.device.type for value in call(torch.device("meta"))} == {"meta"}
    assert {value.device.type for value in call(CPU)} == {"cpu"}
