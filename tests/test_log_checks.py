"""What a log's groups, entropies and rewards say, against the same counted in plain Python."""

import math
from collections import Counter
from itertools import groupby

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from durian_adv.data.logs import checks
from durian_adv.data.logs.checks import NONE, Facts, Finding

ROLLOUTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from((0.0, 1.0, 0.5, math.nan, math.inf)),
        st.sampled_from((math.nan, 1.0, 2.0)),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=20,
)


def of(rows):
    index, rewards, entropies, files = zip(*rows, strict=True)
    as_doubles = [torch.tensor(column, dtype=torch.float64) for column in (rewards, entropies)]
    return checks.facts(torch.tensor(index), *as_doubles, torch.tensor(files))


def counted(rows):
    """The facts of a step, counted one by one."""
    sizes = Counter(Counter(index for index, *_ in rows).values())
    runs = Counter(len(list(run)) for _, run in groupby(index for index, *_ in rows))
    entropies = {index: {e for i, _, e, _ in rows if i == index and e == e} for index, *_ in rows}
    files = {index: {file for i, *_, file in rows if i == index} for index, *_ in rows}
    return Facts(
        sizes,
        runs,
        sum(len(values) > 1 for values in entropies.values()),
        1,
        sum(len(values) > 1 for values in files.values()),
        frozenset(reward for _, reward, *_ in rows if math.isfinite(reward)),
    )


@given(ROLLOUTS)
def test_the_facts_of_a_step_are_what_counting_gives(rows):
    found = of(rows)
    assert found == counted(rows)
    assert found.rollouts == len(rows)
    assert found.groups == len({index for index, *_ in rows})
    bare = checks.facts(torch.tensor([index for index, *_ in rows]), torch.tensor([r for _, r, *_ in rows]))
    assert (bare.entropies, bare.spans) == (0, 0)


@given(st.lists(ROLLOUTS, max_size=4))
def test_the_facts_of_steps_add_up(steps):
    parts = [of(rows) for rows in steps]
    found = checks.merged(parts)
    for name in ("sizes", "runs"):
        assert getattr(found, name) == sum((getattr(part, name) for part in parts), Counter())
    for name in ("entropies", "steps", "spans"):
        assert getattr(found, name) == sum(getattr(part, name) for part in parts)
    assert found.values == frozenset().union(*(part.values for part in parts))


def kinds(**facts):
    found = checks.grouping(NONE._replace(**{name: Counter(value) for name, value in facts.items() if name != "more"}))
    return {finding.kind: finding.broken for finding in found}


@pytest.mark.parametrize(
    ("sizes", "runs", "wanted"),
    [
        ({}, {}, {}),
        ({8: 32}, {8: 32}, {}),
        ({8: 32}, {1: 256}, {}),
        ({1: 1}, {1: 1}, {}),  # one rollout alone is no grouping
        ({1: 2}, {1: 2}, {"single": True}),
        ({8: 30, 16: 1}, {}, {"multiples": True}),
        ({8: 30, 12: 1}, {}, {}),  # no multiple: rollouts were lost, not merged
        ({8: 3000, 16: 1}, {}, {"multiples": False}),  # 0.07% of the rollouts
        ({8: 198, 16: 1}, {}, {"multiples": False}),  # 1% exactly
        ({8: 197, 16: 1}, {}, {"multiples": True}),
        ({4: 10, 8: 10, 6: 1}, {}, {}),  # no size has half of the groups
        ({4: 10, 8: 10}, {}, {"multiples": True}),
        ({1: 20, 8: 10}, {}, {"lone": True}),
        ({1: 10, 8: 10}, {}, {"lone": False}),
        ({16: 16}, {8: 32}, {"steps": True}),
        ({16: 16}, {8: 30, 16: 1}, {}),  # not always so many at a time
        ({16: 16}, {1: 256}, {}),  # shuffled
        ({12: 4}, {8: 6}, {}),
        ({16: 1, 8: 1, 24: 1}, {8: 6}, {}),
    ],
)
def test_which_groupings_are_suspicious_and_which_are_broken(sizes, runs, wanted):
    assert kinds(sizes=sizes, runs=runs) == wanted


def test_entropies_and_files_are_suspicious_from_the_first_and_broken_over_one_percent():
    sizes = Counter({8: 200})
    for name, kind in (("entropies", "entropies"), ("spans", "steps")):
        for groups, broken in ((1, False), (2, False), (3, True)):
            (finding,) = checks.grouping(NONE._replace(sizes=sizes, **{name: groups}))
            assert (finding.kind, finding.broken) == (kind, broken)
            assert finding.title.startswith(f"{groups} of 200 prompts have")


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({}, "no prompts"),
        ({1: 1}, "1 prompt x 1 rollout"),
        ({8: 1500}, "1,500 prompts x 8 rollouts"),
        ({8: 30, 16: 1}, "30 prompts x 8 rollouts, 1 x 16"),
        (
            {size: 9 - size for size in range(1, 9)},
            "8 prompts x 1 rollout, 7 x 2, 6 x 3, 5 x 4, 4 x 5, 3 x 6, 3 of other sizes",
        ),
    ],
)
def test_group_sizes_are_written_most_frequent_first(sizes, told):
    assert checks.described(Counter(sizes)) == told


@pytest.mark.parametrize(
    ("values", "threshold", "said"),
    [
        ((), 0.5, False),
        ((0.0, 1.0), 0.5, False),
        ((0.0, 0.1), 0.5, False),  # no rollout is correct, and half of 0.1 is no accuracy
        ((0.0, 0.1, 0.9, 1.0), 0.5, False),
        ((0.0, 0.25, 0.5, 0.75, 1.0), 0.5, True),
        ((-1.0, 1.0), 0.0, True),
        ((1.0, 2.0), 1.5, True),
        ((0.0, 100.0), 50.0, True),
        ((-1.7e308, 1.7e308), 0.0, True),
    ],
)
def test_a_threshold_is_derived_where_the_scale_is_not_that_of_accuracy(values, threshold, said):
    assert checks.threshold(frozenset(values)) == threshold
    found = checks.scale(frozenset(values))
    assert (found is not None) == said
    assert checks.scale(frozenset(values), given=0.3) is None
    if found is not None:
        assert isinstance(found, Finding)
        assert f"above {threshold:g} counts as correct" in found.title
        assert not found.broken


def test_of_many_distinct_rewards_a_thousand_are_counted_and_the_range_is_whole():
    values = torch.linspace(0, 100, 5000, dtype=torch.float64)
    found = checks.facts(torch.zeros(5000, dtype=torch.int64), values)
    assert len(found.values) == 1000
    assert (min(found.values), max(found.values)) == (0, 100)
    assert "at least 1,000 distinct values" in checks.scale(found.values).title
    both = checks.merged([found, checks.facts(torch.zeros(2, dtype=torch.int64), torch.tensor([-5.0, 300.0]))])
    assert (min(both.values), max(both.values)) == (-5, 300)


def test_a_command_s_own_options_are_named():
    mend = checks.Mend("--prompt input image", "--prompt step prompt")
    for sizes in ({1: 5}, {8: 3, 16: 1}, {8: 9, 1: 1}):
        (finding,) = checks.grouping(NONE._replace(sizes=Counter(sizes)), mend)
        assert "--prompt input image" in finding.text
        assert "--key" not in finding.text
