"""The papers' formulas in NumPy and exact rational arithmetic: the oracle of the tests.

Plain loops, one function an equation of "Enhancing Multi-Modal LLMs Reasoning via Difficulty-Aware
Group Normalization" (arXiv 2602.21743), and nothing imported from the library under test or from torch.

Every float is an integer multiple of 2**-1074, so means and variances are computed without rounding on
integers, whatever the scale or the offset of the rewards; only the square root (120 correct bits) and
the final conversion to float64 round. The oracle's own error is therefore one unit in the last place.

A batch is a list of prompts; a prompt is the list of the positions of its rollouts in the flattened
rewards. `dense_prompts` and `flat_prompts` make that list from the two forms of the public functions.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np

_UNIT = 1074  # every float64 is an integer times 2 ** -1074
_ROOT_BITS = 120  # correct bits of a square root


# --- exact arithmetic -------------------------------------------------------------------------------


def _integer(x):
    """The float x as an integer number of units of 2 ** -1074."""
    numerator, denominator = float(x).as_integer_ratio()
    return numerator * ((1 << _UNIT) // denominator)


def exact_mean(values):
    """The mean as a Fraction."""
    return Fraction(sum(_integer(v) for v in values), len(values) << _UNIT)


def exact_variance(values, correction):
    """sum (x - mean)^2 / (n - correction) as a Fraction; 0 where there is nothing to divide by."""
    n = len(values)
    if n - correction <= 0:
        return Fraction(0)
    units = [_integer(v) for v in values]
    total = sum(units)
    squares = sum(u * u for u in units)
    return Fraction(n * squares - total * total, (n * (n - correction)) << (2 * _UNIT))


def exact_sqrt(x):
    """The square root of a Fraction, as a Fraction with 120 correct bits."""
    if x == 0:
        return Fraction(0)
    shift = 2 * _ROOT_BITS + max(0, x.denominator.bit_length() - x.numerator.bit_length() + 2)
    shift += shift % 2
    return Fraction(math.isqrt((x.numerator << shift) // x.denominator), 1 << (shift // 2))


def exact_std(values, correction):
    """The standard deviation as a Fraction."""
    return exact_sqrt(exact_variance(values, correction))


def rounded(x):
    """The float64 nearest to a Fraction; beyond the range, the largest number."""
    try:
        return float(x)
    except OverflowError:
        return math.copysign(float(np.finfo(np.float64).max), 1 if x > 0 else -1)


def is_signal(values):
    """Some reward differs from another: max > min, never a question of the std."""
    return len(values) > 1 and max(values) > min(values)


# --- the two forms of a batch -----------------------------------------------------------------------


def dense_prompts(shape):
    """The prompts of a (B, G) batch."""
    rows, columns = shape
    return [[s * columns + i for i in range(columns)] for s in range(rows)]


def flat_prompts(prompt_index):
    """The prompts of a flat batch: the rollouts that share a value, in the order of these values."""
    members = {}
    for position, name in enumerate(prompt_index):
        members.setdefault(int(name), []).append(position)
    return [members[name] for name in sorted(members)]


def usable(rewards, valid):
    """Which rollouts count: valid ones with a finite reward."""
    flat = [float(r) for r in np.asarray(rewards, dtype=np.float64).ravel()]
    allowed = [True] * len(flat) if valid is None else [bool(v) for v in np.asarray(valid).ravel()]
    return [a and math.isfinite(r) for a, r in zip(allowed, flat, strict=True)]


class Batch:
    """Rewards, which of them count, and the prompts they belong to."""

    def __init__(self, rewards, valid=None, prompt_index=None, rollout_index=None):
        """`live` holds the rollouts that count: where one lies in several rows, its first valid row stands for it."""
        array = np.asarray(rewards, dtype=np.float64)
        self.shape = array.shape
        self.rewards = [float(r) for r in array.ravel()]
        self.ok = usable(array, valid)
        self.flat = prompt_index is not None
        self.prompts = flat_prompts(np.asarray(prompt_index)) if self.flat else dense_prompts(array.shape)
        self.live = [[i for i in members if self.ok[i]] for members in self.prompts]
        self.stand_in = {}  # a valid row that does not stand for its rollout -> the row that does
        if rollout_index is not None:
            names = [int(name) for name in np.asarray(rollout_index)]
            for s, members in enumerate(self.live):
                first = {}
                for i in members:
                    self.stand_in[i] = first.setdefault(names[i], i)
                self.live[s] = list(first.values())

    def silenced(self):
        """The same batch in which no rollout of a prompt without a signal counts."""
        out = copy.copy(self)
        out.live = [members if signal else [] for members, signal in zip(self.live, self.signal(), strict=True)]
        return out

    def repeated(self, advantages):
        """Every valid row has its rollout's advantage."""
        out = advantages.ravel().copy()
        for row, first in self.stand_in.items():
            out[row] = out[first]
        return out.reshape(self.shape)

    def values(self, positions):
        """The rewards at these positions."""
        return [self.rewards[i] for i in positions]

    def signal(self):
        """One bool per prompt."""
        return [is_signal(self.values(members)) for members in self.live]

    def spread(self, per_prompt, dtype):
        """One value per prompt as the library reports it: (B,), or repeated to (N,) in the flat form."""
        if not self.flat:
            return np.array(per_prompt, dtype=dtype).reshape(len(self.prompts))
        out = np.zeros(len(self.rewards), dtype=dtype)
        for members, value in zip(self.prompts, per_prompt, strict=True):
            for i in members:
                out[i] = value
        return out


# --- advantages -------------------------------------------------------------------------------------


def _centered_by_prompt(batch, scale_of_prompt, eps):
    """(r - mean_i r) / (scale + eps) for the prompts with a signal, 0 for everything else."""
    out = np.zeros(len(batch.rewards))
    for members, signal, scale in zip(batch.live, batch.signal(), scale_of_prompt, strict=True):
        if signal:
            center = exact_mean(batch.values(members))
            for i in members:
                out[i] = rounded((Fraction(batch.rewards[i]) - center) / (scale + Fraction(eps)))
    return batch.repeated(out)


def prompt_stds(batch, correction=1):
    """std_i r[s, :] for every prompt, exactly."""
    return [exact_std(batch.values(members), correction) for members in batch.live]


def grpo(rewards, valid=None, prompt_index=None, eps=1e-6, correction=1):
    """Equation 2: (r - mean_i r) / (std_i r + eps)."""
    batch = Batch(rewards, valid, prompt_index)
    return _centered_by_prompt(batch, prompt_stds(batch, correction), eps)


def bucket_stds(batch, buckets, correction=1):
    """Equations 11 and 17: the std of all raw rewards of a prompt's bucket, for every prompt, exactly."""
    pools = {}
    for members, bucket in zip(batch.live, buckets, strict=True):
        pools.setdefault(bucket, []).extend(batch.values(members))
    stds = {bucket: exact_std(pool, correction) for bucket, pool in pools.items()}
    return [stds[bucket] for bucket in buckets]


def _bucket_of_prompt(batch, buckets):
    """One bucket per prompt: the (B,) array itself, or what the prompt's first live rollout says."""
    if not batch.flat:
        return [int(b) for b in np.asarray(buckets)]
    flat = [int(b) for b in np.asarray(buckets)]
    return [flat[live[0]] if live else None for live in batch.live]


def shared_std(rewards, buckets, valid=None, prompt_index=None, eps=1e-6, correction=1):
    """Equations 11-13 and 17-19: (r - mean_i r) / (std(R_bucket) + eps)."""
    batch = Batch(rewards, valid, prompt_index)
    stds = bucket_stds(batch, _bucket_of_prompt(batch, buckets), correction)
    return _centered_by_prompt(batch, stds, eps)


def known_scores(batch, scores):
    """One score per row: what a rollout's valid rows know, which is one value, stands in the row that stands for it."""
    out = np.array(scores, dtype=np.float64)
    for row, first in batch.stand_in.items():
        if math.isnan(out[first]):
            out[first] = out[row]
    return out


def categories(batch, category):
    """One category per prompt: the largest of its live rows' in the flat form; none without a live rollout."""
    labels = [int(c) for c in np.asarray(category)]
    out = []
    for s, live in enumerate(batch.live):
        rows = [row for row, first in batch.stand_in.items() if first in live] or live
        out.append((max(labels[i] for i in rows) if batch.flat else labels[s]) if live else None)
    return out


def combine(components, weights):
    """Equation 20, with what was left out left out: its weight is spread over the others."""
    kept = [(c, Fraction(w)) for c, w in zip(components, weights, strict=True) if c is not None]
    scale = sum(Fraction(w) for w in weights) / sum(w for _, w in kept)
    out = np.zeros(kept[0][0].shape)
    for position in np.ndindex(*out.shape):
        out[position] = rounded(sum(scale * w * Fraction(float(c[position])) for c, w in kept))
    return out


# --- buckets ----------------------------------------------------------------------------------------


def _threshold_positions(quantiles, n):
    """The positions of the thresholds in the sorted scores, rounded down and up, and their levels."""
    if isinstance(quantiles, int):
        b = quantiles
        return [((k * (n - 1)) // b, -((-k * (n - 1)) // b), Fraction(k, b)) for k in range(1, b)]
    return [(math.floor(q * (n - 1)), math.ceil(q * (n - 1)), q) for q in quantiles]


def buckets(scores, quantiles, boundary="upper"):
    """Equations 10 ("outer") and 16 ("upper"): which quantile range a score falls into, by ranks alone.

    A threshold lies between two neighboring order statistics x[floor(pos)] <= t <= x[ceil(pos)], so
    s >= t exactly when s >= x[ceil(pos)], and s > t exactly when s > x[floor(pos)].
    """
    scores = [float(s) for s in scores]
    order = sorted(s for s in scores if not math.isnan(s))
    levels = quantiles - 1 if isinstance(quantiles, int) else len(quantiles)
    out = []
    for s in scores:
        if math.isnan(s):
            out.append(levels + 1)
            continue
        bucket = 0
        for k, (below, above, level) in enumerate(_threshold_positions(quantiles, len(order))):
            lower_wins = boundary == "lower" or (boundary == "outer" and level < 0.5)
            passed = s > order[below] if lower_wins else s >= order[above]
            if k == 0 and boundary == "outer" and not s > order[below]:
                bucket = 0
                break
            bucket += passed
        out.append(bucket)
    return np.array(out, dtype=np.int64)


def mean_score(values):
    """The mean of the scores that are there; exactly their value when they agree; NaN for none."""
    present = [v for v in values if not math.isnan(v)]
    if not present:
        return math.nan
    if all(v == present[0] for v in present):
        return present[0]
    if any(math.isinf(v) for v in present):
        return sum(present)  # one infinity decides; both are NaN
    return float(sum(Fraction(v) for v in present) / len(present))


def prompt_scores(batch, scores):
    """Equation 15: one difficulty score a prompt; a prompt without a live rollout has none."""
    array = np.asarray(scores, dtype=np.float64)
    if not batch.flat and array.ndim == 1:
        return [float(s) if live else math.nan for s, live in zip(array, batch.live, strict=True)]
    flat = [float(s) for s in array.ravel()]
    return [mean_score([flat[i] for i in live]) for live in batch.live]


# --- Durian -----------------------------------------------------------------------------------------


def durian(
    rewards,
    visual_entropy=None,
    confidence=None,
    valid=None,
    prompt_index=None,
    category=None,
    rollout_index=None,
    weights=(0.1, 0.2, 0.7),
    no_signal="keep",
    entropy_quantiles=(0.25, 0.75),
    num_confidence_buckets=12,
    eps=1e-6,
    correction=1,
):
    """Equation 20 and everything below it: a dict with the names of the library's components."""
    batch = Batch(rewards, valid, prompt_index, rollout_index)
    signal = batch.signal()
    if no_signal == "drop":
        batch = batch.silenced()
    own = prompt_stds(batch, correction)
    out = {
        "grpo": _centered_by_prompt(batch, own, eps),
        "prompt_std": batch.spread([rounded(s) for s in own], np.float64),
        "has_signal": batch.spread(signal, bool),
    }
    sources = (
        ("perceptual", "entropy_bucket", visual_entropy, entropy_quantiles, "outer"),
        ("reasoning", "confidence_bucket", confidence, num_confidence_buckets, "upper"),
        ("category", None, category, None, None),
    )
    for name, bucket_name, given, quantiles, boundary in sources:
        out[name] = out[f"{name}_std"] = None
        if bucket_name is not None:
            out[bucket_name] = None
        if given is None:
            continue
        if name == "category":
            chosen = categories(batch, given)
        else:
            known = known_scores(batch, given) if rollout_index is not None else given
            chosen = [int(b) for b in buckets(prompt_scores(batch, known), quantiles, boundary)]
            out[bucket_name] = batch.spread(chosen, np.int64)
        stds = bucket_stds(batch, chosen, correction)
        out[name] = _centered_by_prompt(batch, stds, eps)
        out[f"{name}_std"] = batch.spread([rounded(s) for s in stds], np.float64)
    names = ("grpo", "perceptual", "reasoning", "category")[: len(weights)]
    out["advantages"] = combine([out[name] for name in names], weights)
    return out


# --- the difficulty scores --------------------------------------------------------------------------


def eigen_entropy(features, mask=None, normalize=False):
    """Equations 5-9 for one image, from the singular values of the centered features.

    The eigenvalues of F_c F_c^T / (P - 1) are the squared singular values of F_c over (P - 1); the
    factor cancels in p_k = lambda_k / sum lambda. The first patch is subtracted before the mean, in
    extended precision, so that an offset costs no digits and a constant image is exactly 0.
    """
    f = np.asarray(features, dtype=np.float64)
    if mask is not None:
        f = f[np.asarray(mask).astype(bool)]
    patches, dimension = f.shape
    if patches == 0 or not np.isfinite(f).all():
        return math.nan
    shifted = f.astype(np.longdouble) - f[0].astype(np.longdouble)
    centered = shifted - shifted.mean(axis=0)
    largest = np.abs(shifted).max() if dimension else np.longdouble(0)
    if largest == 0:
        return 0.0
    singular = np.linalg.svd((centered / largest).astype(np.float64), compute_uv=False)
    power = [float(s) ** 2 for s in singular]
    total = math.fsum(power)
    entropy = math.fsum(-(x / total) * math.log(x / total) for x in power if x / total > 0)
    if normalize:
        rank = min(patches - 1, dimension)
        return entropy / math.log(rank) if rank > 1 else 0.0
    return entropy


def sequence_confidence(logprobs, mask=None, reduction="sum"):
    """Equation 14 for one sequence: the sum (or the mean) over the tokens that are there."""
    present = [True] * len(logprobs) if mask is None else [bool(m) for m in mask]
    tokens = [float(x) for x, m in zip(logprobs, present, strict=True) if m]
    if not tokens:
        return math.nan
    total = sum(tokens) if any(not math.isfinite(t) for t in tokens) else math.fsum(tokens)
    return total / len(tokens) if reduction == "mean" else total


# --- the family: a choice of center and of scale ----------------------------------------------------


def dr_grpo(rewards, valid=None, prompt_index=None):
    """Dr. GRPO: r - mean_i r."""
    batch = Batch(rewards, valid, prompt_index)
    return _centered_by_prompt(batch, [Fraction(1)] * len(batch.prompts), 0.0)


def batch_std(rewards, valid=None, prompt_index=None, eps=1e-6, correction=1):
    """LitePPO, TRL scale_rewards="batch": (r - mean_i r) / std of all raw rewards."""
    batch = Batch(rewards, valid, prompt_index)
    return _centered_by_prompt(batch, bucket_stds(batch, [0] * len(batch.prompts), correction), eps)


def rloo(rewards, valid=None, prompt_index=None):
    """RLOO: r_i - the mean of the prompt's other responses; 0 where there is no other or no signal."""
    batch = Batch(rewards, valid, prompt_index)
    out = np.zeros(len(batch.rewards))
    for members, signal in zip(batch.live, batch.signal(), strict=True):
        for i in members if signal else []:
            others = exact_mean(batch.values([j for j in members if j != i]))
            out[i] = rounded(Fraction(batch.rewards[i]) - others)
    return out.reshape(batch.shape)


def reinforce_plus_plus(rewards, valid=None, prompt_index=None, eps=1e-6, correction=1):
    """REINFORCE++: (r - batch mean) / batch std; 0 where the whole batch is equal."""
    batch = Batch(rewards, valid, prompt_index)
    live = [i for members in batch.live for i in members]
    out = np.zeros(len(batch.rewards))
    if is_signal(batch.values(live)):
        center = exact_mean(batch.values(live))
        scale = exact_std(batch.values(live), correction) + Fraction(eps)
        for i in live:
            out[i] = rounded((Fraction(batch.rewards[i]) - center) / scale)
    return out.reshape(batch.shape)


def reinforce_plus_plus_baseline(rewards, valid=None, prompt_index=None, eps=1e-6, correction=1):
    """REINFORCE++-baseline: A' = r - mean_i r, then A' / std(A') over the batch."""
    batch = Batch(rewards, valid, prompt_index)
    centered = [Fraction(0)] * len(batch.rewards)
    for members in batch.live:
        if members:
            center = exact_mean(batch.values(members))
            for i in members:
                centered[i] = Fraction(batch.rewards[i]) - center
    live = [i for members in batch.live for i in members]
    n = len(live)
    out = np.zeros(len(batch.rewards))
    if any(batch.signal()):
        mean = sum(centered[i] for i in live) / n
        scale = exact_sqrt(sum((centered[i] - mean) ** 2 for i in live) / (n - correction)) + Fraction(eps)
        for i in live:
            out[i] = rounded(centered[i] / scale)
    return out.reshape(batch.shape)


# --- what is said of a batch ------------------------------------------------------------------------


def outcomes(rewards, valid=None, prompt_index=None, threshold=0.5):
    """Appendix A: for every prompt, valid rollouts, correct ones, and the kind of its group."""
    batch = Batch(rewards, valid, prompt_index)
    out = []
    for members, signal in zip(batch.live, batch.signal(), strict=True):
        n, hits = len(members), sum(batch.rewards[i] > threshold for i in members)
        kind = "other" if signal else "none"
        if signal and n >= 3 and hits == 1:
            kind = "extreme_failure"
        if signal and n >= 3 and hits == n - 1:
            kind = "extreme_success"
        out.append((n, hits, kind))
    return out


def update_of_prompts(advantages, prompt_index=None):
    """The sum of |A| of every prompt."""
    array = np.asarray(advantages, dtype=np.float64)
    members = dense_prompts(array.shape) if prompt_index is None else flat_prompts(np.asarray(prompt_index))
    flat = [abs(float(a)) for a in array.ravel()]
    return [math.fsum(flat[i] for i in prompt) for prompt in members]


def update_shares(advantages, kinds, prompt_index=None):
    """The share of the sum of |A| that the prompts of each kind have."""
    update = update_of_prompts(advantages, prompt_index)
    total = math.fsum(update)
    of_kind = {
        kind: math.fsum(u for u, k in zip(update, kinds, strict=True) if k == kind)
        for kind in ("extreme_failure", "other", "extreme_success")
    }
    return {kind: part / total if total else math.nan for kind, part in of_kind.items()}


def error_shares(rewards, buckets, scores, valid=None, prompt_index=None, threshold=0.5):
    """Appendix B: the share of all errors that the prompts of each bucket make, of those with a score; by bucket."""
    wrong = [n - hits for n, hits, _ in outcomes(rewards, valid, prompt_index, threshold)]
    of_bucket = {}
    for errors, bucket, score in zip(wrong, buckets, scores, strict=True):
        if not math.isnan(score):
            of_bucket[int(bucket)] = of_bucket.get(int(bucket), 0) + errors
    total = sum(of_bucket.values())
    return {bucket: errors / total if total else math.nan for bucket, errors in of_bucket.items()}


def moved(start, end):
    """The length of the difference over the length of the start, and the cosine of the angle between the two."""
    a, b = (np.asarray(x, dtype=np.float64).ravel() for x in (start, end))
    a, b = [float(x) for x in a], [float(x) for x in b]
    size = math.hypot(*a)
    both = size * math.hypot(*b)
    far = math.hypot(*(y - x for x, y in zip(a, b, strict=True)))
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return (far / size if size else math.nan), (dot / both if both else math.nan)


# --- difficulty prior -------------------------------------------------------------------------------


def accuracies(batch, correct):
    """The mean of each prompt's known correctness over its live rollouts; NaN without one."""
    flat = [float(c) for c in np.asarray(correct, dtype=np.float64).ravel()]
    return [mean_score([flat[i] for i in live]) for live in batch.live]


def accuracy_weights(rewards, f, correct, valid=None, prompt_index=None, normalize=False):
    """f(p) for every prompt, 1 where p is not known; by their mean over the prompts with a signal."""
    batch = Batch(rewards, valid, prompt_index)
    p = accuracies(batch, correct)
    out = [math.nan if math.isnan(x) else f(x) for x in p]
    if normalize:
        counted = [abs(w) for w, signal in zip(out, batch.signal(), strict=True) if signal and not math.isnan(w)]
        mean = float(exact_mean(counted)) if counted else 0.0
        out = [w / mean if mean else w for w in out]
    return batch.spread([1.0 if math.isnan(w) else w for w in out], np.float64)


def reweighted(rewards, f, correct, valid=None, prompt_index=None, normalize=False):
    """A = f(p) (r - mean_i r) of arXiv 2505.13261."""
    weights = accuracy_weights(rewards, f, correct, valid, prompt_index, normalize)
    batch = Batch(rewards, valid, prompt_index)
    out = np.zeros(len(batch.rewards))
    for s, (members, signal) in enumerate(zip(batch.live, batch.signal(), strict=True)):
        if signal:
            mean = exact_mean(batch.values(members))
            for i in members:
                weight = Fraction(float(weights[i if batch.flat else s]))
                out[i] = rounded(weight * (Fraction(batch.rewards[i]) - mean))
    return out.reshape(batch.shape)


# --- worth ------------------------------------------------------------------------------------------


def worth(rewards, advantages, correct, category=None, valid=None, prompt_index=None):
    """The squared signal over the noise, by the best of one factor per category: delete-one jackknife over prompts."""
    batch, answers = Batch(rewards, valid, prompt_index), [float(c) for c in np.asarray(correct, np.float64).ravel()]
    kinds = [0] * len(batch.live) if category is None else categories(batch, category)
    given, prompts = [float(x) for x in np.asarray(advantages, np.float64).ravel()], []
    for members, kind in zip(batch.live, kinds, strict=True):
        if members and all(math.isfinite(answers[i]) for i in members):
            r, c = _from_mean(batch.values(members)), _from_mean([answers[i] for i in members])
            a = [given[i] for i in members]
            if not abs(math.fsum(a)) <= 0.01 * math.fsum(map(abs, a)):
                return math.nan, math.nan
            prompts.append((kind, _dot(a, c), _dot(a, a), _dot(r, c), _dot(r, r)))
    value = _worth_of(prompts)
    without = [_worth_of(prompts[:i] + prompts[i + 1 :]) for i in range(len(prompts))]
    if not prompts or any(map(math.isnan, [value, *without])):
        return math.nan, math.nan
    n, mean = len(prompts), math.fsum(without) / len(prompts)
    return n * value - (n - 1) * mean, math.sqrt((n - 1) / n * math.fsum((x - mean) ** 2 for x in without))


def _from_mean(values):
    mean = exact_mean(values)
    return [float(Fraction(value) - mean) for value in values]


def _dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _worth_of(prompts):
    best = 0.0
    for kind in {prompt[0] for prompt in prompts}:
        w, v = (math.fsum(prompt[i] for prompt in prompts if prompt[0] == kind) for i in (3, 4))
        best += w * w / v if v else 0.0
    signal, noise = (math.fsum(prompt[i] for prompt in prompts) for i in (1, 2))
    return signal * abs(signal) / (noise * best) if noise and best else math.nan
