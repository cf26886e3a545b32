"""The sentences of docs/evidence.md; its numbers are filled in from the records."""

from typing import Any

from studies.evidence.comparison import Difference

HEAD = """# Evidence

Does it matter how a group's rewards are normalized: where, and by how much? This page compares Durian with the other
group normalizations on tasks of known difficulty and reports every result, whichever way it fell.
`python -m studies.evidence page` writes it from the records in
[`studies/evidence/records/`](../studies/evidence/records), one table of all runs with seeds, settings and versions.
`make evidence` runs a small version (mechanism, and 4 arms x 6 seeds x 25 steps) in under 10 minutes on one core;
`python -m studies.evidence run` trains every run that has no record yet, can be killed at any time and resumes where it
stopped; `python -m studies.evidence collect` adds finished runs to the table."""

DERIVATION = r"""## One update, without training

**Why the arms are so alike.** Every arm centers a reward by its prompt's mean and multiplies by one positive factor per
prompt, $A_{s,i} = f_s (r_{s,i} - \mu_s)$; arms differ in $f$ alone. Let another arm have $A'_{s,i} = g_s A_{s,i}$ with
$a \le g_s \le b$ on the prompts with signal, and let $w_s$ be the share of prompt s in the sum of squares of A. Then

$$
\cos(A, A') = \frac{\sum_s w_s g_s}{\sqrt{\sum_s w_s g_s^2}}.
$$

From $(g_s - a)(b - g_s) \ge 0$ follows $\sum_s w_s g_s^2 \le (a + b) x - a b$ with $x = \sum_s w_s g_s$. So the squared
cosine is at least $x^2 / ((a + b) x - a b)$, which is least at $x = 2 a b / (a + b)$, and

$$
\cos(A, A') \ge \frac{2 \sqrt{a b}}{a + b},
$$

reached when the prompts have only the two factors a and b, in the right mixture. Only the ratio $b / a$ counts. GRPO
and Dr. GRPO differ by the prompt's std. For binary rewards, k of G right, it is $\sqrt{k (G - k)} / G$ (population;
the sample form has one more constant), which lies in $[\sqrt{G - 1} / G, \, 1/2]$."""

MECHANISM = """\
So the cosine of GRPO's advantages and Dr. GRPO's is at least
**{bound_8:.3f} at G = 8**, {bound_16:.3f} at 16, {bound_32:.3f} at 32, and {bound_2:.0f} at G = 2, where they are equal
up to scale. Batch std, RLOO, REINFORCE++-baseline and the pooled within-prompt std have one factor for all prompts: on
equal groups they are Dr. GRPO times a number. Durian's factor is a weighted sum of three inverse stds, and the std of a
bucket with mean accuracy p is the square root of p (1 - p), nearly the same for all p that are not near 0 or 1. Rewards
of 0.9 accuracy + 0.1 format lower GRPO's bound to {format_bound:.2f}: a group that differs in format alone has a std
ten times smaller, and GRPO blows it up tenfold. There a difference *can* exist.

A bound on advantages is none on gradients, which are sums over prompts; those are measured, on shared rollouts from the
warm policy and from two later checkpoints of one run. And the optimizer changes what counts. Plain SGD passes on the
scale of A, so that Dr. GRPO is GRPO with a smaller learning rate. Adam divides the scale out, but its first step is
nearly the *sign* of the gradient, and signs flip where a weight's gradient is near zero: the cosine of first Adam steps
is lower than that of the gradients (for jointly normal coordinates it is 2/π arcsin of it)."""

MECHANISM_COLUMNS = """\
*Alignment*: cosine with an estimate of the true policy gradient from other prompts, corrected for that estimate's own
noise. *Noise / signal*: variance of a batch's gradient over the squared norm of its mean, so lower is better and
scale does not count. *Largest*, and the same *over the rms* of all advantages. A *gradient norm* is what plain SGD
would feel."""

SUITE = """\
## The tasks

Questions about photographs with shapes on them, read through a frozen EfficientNet-Lite0; training and held-out images
use different photographs. The *clutter* of a scene fades its shapes, brings out the photograph and adds strokes; the
*depth* of a question is the number of counts its chain needs. One policy of 0.27M parameters is warmed up on
demonstrations of which {guess:.0%} guess, {careless:.0%} of the others miscount now and then, and {malformed:.0%}
forget to end their thoughts; all arms start from its bits. Below: the warm policy on the held-out prompts, 16 samples
each; the last two columns are rank correlations. The dial was to move accuracy with a rank correlation of at least 0.3
within a form of question: it does in {strong} of {forms} forms, and on average over them ({mean:+.2f})."""

DECLARED = """## What was declared before the main runs

Written down {date} UTC in `declared.json`, from pilots on seeds of their own. The learning rate for all arms is {lr:g}:
the two best rates of a sweep of 25 steps with all arms (one seed) were tried over 100 steps with three arms (two
seeds), and this one was better. The outcome is held-out accuracy after the last step, sampled, 2,000 prompts x 16;
{comparisons} comparisons are corrected together (Holm); the margin of equivalence is {margin:g} point, half of the two
points that the paper reports. The pilots' paired deviation after 100 steps is {deviation:.2f} points ({freedom} degrees
of freedom, so its upper 80% limit, {upper:.2f}, counts too). What n seeds can detect, with a power of 80% at 5% over
all comparisons:"""

MAIN = """\
Same prompts in the same order for every arm, and the same random number decides the same token of the same response,
so arms share their noise until their policies part. Differences are paired by seed, and every interval on this page is
Student's t over seeds, the one that the paired t test inverts. *Indistinguishable* means that two one-sided tests put
the difference inside the margin. All p values are corrected over the table (Holm); intervals are not."""

INTERIM = """\
**An interim look.** What was declared is a test of all seeds; verdicts may change until they are there."""

WHERE = """On parts of the exam, in points (exploratory: no correction)."""

SIDE = """## Side tables

Four or five seeds each: exploratory. They can show large effects and cannot exclude small ones."""

SGD = """\
One learning rate for all arms compares scales, not directions; each arm at its best one compares directions. A rate
after which an arm is below the warm policy, {warm:.1%}, is too high for it, and the tables of such rates compare ways
to fail: they stay out of the answer above. The two lowest rates were added after the other three had been seen. The
best rate is chosen on the seeds it is compared on, for every arm alike. Rates are a factor of three apart, and Dr.
GRPO's advantages are less than half as large: its 0.1 lies between 0.03 and 0.1 of the others, where those were not
tried, so its lead may be one of the grid."""

PAPER = """## The paper's tables at this scale

Its accuracies are of other tasks and another model; what can be compared is the shape: which settings are better."""

CORRELATIONS = """\
Rank correlations at the warm policy; for the photograph, which has no order, the correlation ratio of ranks. Entropy
on 1,000 held-out images by layer of the encoder (the policy and all arms use stride 16)."""

ERRORS = """\
Shares of the errors, in percent, by bucket, low to high: entropy in the paper's quartile buckets (a quarter, a half,
a quarter of the prompts) and in thirds; confidence in ten equal groups. An error is *perception* where a count that
the chain starts from is wrong, *reasoning* where all of them are right and the conclusion is not, *guess* where
nothing was counted, *other* where the chain is not one that the question asks for. Where there are few errors of a
kind their shares mean nothing: once this policy has counted, it concludes rightly. The paper has perceptual errors at
23.6 / 31.3 / 45.1 % (We-Math) over entropy and reasoning errors from 13.4% in the least to 4.2% in the most confident
tenth."""

SCALE = """\
**How large is a point?** The margin of {margin:g} point is strict. GRPO gains {gain:.1f} points here, from {warm:.1%}
to {grpo:.1%}, so the margin is {share:.0%} of that gain. In the paper GRPO gains {paper_gain:.1f} points and Durian
{paper_extra:.1f} more, {paper_share:.0%} of GRPO's gain; in proportion that would be {scaled:.1f} points here."""

STRUCTURE = """\
**Choose by the structure of your rewards.** The first two lines are derived and measured below; the last two are
derived here, and trained on in [the test of the law](law.md#the-test).

- **Binary rewards, prompts of one kind**: the normalizations are nearly parallel (cosine of GRPO with one std at least
  {bound:.3f} at G = 8). Keep yours.
- **A small reward term that can differ alone** (0.1 for the format): GRPO enlarges a group that differs only in that
  term up to tenfold; a std shared by many prompts (batch std, Durian) does not. Share the std if the term should stay
  small. That this helps is not shown: {measured}.
- **A tie-break or length term**: the same, more so: the smaller the term, the more GRPO enlarges it.
- **Kinds of prompts whose rewards differ in unit or noise**: under one std for the whole batch the largest kind
  dominates; a std per prompt follows each kind, with the noise of a std from G rewards. Keep a std per prompt, or share
  it by kind if you know the kinds: `shared_std_advantage(rewards, kind)`, or Durian's `category`."""

RELATED = """## Related work

[Ge et al. (2601.23135)](https://arxiv.org/abs/2601.23135) argue that dividing by a prompt's std is an adaptive step
size: the variance of a prompt's rewards stands for the local curvature, and GRPO then converges faster than without a
std. The bound above says how far that can turn a batch's update, not how far to step. [Bay and Yearick
(2607.00152)](https://arxiv.org/abs/2607.00152) show that, for binary rewards, GRPO, Dr. GRPO and DAPO's filter are
three settings of one dial, what is done with the prompt's std; Durian adds whose std it is."""

TAIL = """## What this cannot say

- **The arm of the paper's ablations is missing.** Its Tables 2, 3 and 7 and its Figure 3 come from DAPO runs, which
  drop groups without signal before the advantage is computed (`no_signal="drop"`). Every Durian arm here keeps them,
  as the paper's GRPO runs do.
  With binary rewards, dropping them leaves groups with 1 to G - 1 right, so the population std of every bucket lies in
  the range derived above, and Durian and batch std are at least as parallel as its bound says. On another
  task, with 0.9 + 0.1 rewards, [no difference was found](law.md#a-tie-break-in-all-rewards) between dropped and kept.
- **The paper never compares with batch std.** If all errors spread over the buckets as Tables 5 and 6 say of each kind,
  the stds of its buckets lie within a factor of {ratio:.1f}, and each bucket component's cosine with batch std is at
  least {cosine:.2f}.
- **Coupled errors are untested.** The paper argues that errors of perception and of reasoning come together; here
  {reasoning:.0f} of {errors:,.0f} errors are of reasoning alone. Nor is there an arm with the mean confidence, although
  the sum follows depth and with it length (rank correlation {sum_depth:+.2f}; the mean: {mean_depth:+.2f}).
- **One setting.** One encoder, one kind of task, one warm policy of 0.27M parameters that RL mostly teaches to choose
  its better habits. Seeds vary prompts and sampling, not the warm-up. Visual entropy follows clutter here by design; on
  natural images it need not. The paper trains 7B parameters on 512 prompts x 8 per step, where 12 buckets hold 43
  prompts each, and its rewards mix 0.9 accuracy with 0.1 format.

What would decide it: the paper's own setting with GRPO, batch std, random buckets and Durian, with groups without
signal kept and dropped, at least five seeds each, and the paired deviation reported.

What theory predicts for other rewards, and where that was trained: [When does a shared std help?](law.md)"""


def answer(
    plan: dict[str, Any],
    found: list[Difference],
    cosines: dict[str, dict[str, list[float]]],
    conditions: dict[str, list[Difference]],
    *,
    whole: bool,
) -> str:
    """Say what the declared comparisons and the gradients came to, in the words of their verdicts."""
    margin = plan["margin_of_equivalence"]
    lines = []
    for rewards, arms in cosines.items():
        spans = ", ".join(f"{name} {_span(arms[name])}" for name in ("grpo", "durian", "reasoning", "random-buckets"))
        lines.append(
            f"- **One update, rewards {rewards}**: cosine of the gradient with batch std's, over checkpoints: {spans}."
        )
    against = {(d.arm, d.baseline): d for d in found}
    for pair, question in (
        (("durian", "grpo"), "Durian or GRPO"),
        (("durian", "batch-std"), "Durian or batch std"),
        (("batch-std", "grpo"), "Batch std or GRPO"),
        (("durian", "dr-grpo"), "Durian or no std at all"),
        (("durian", "random-buckets"), "Buckets by difficulty or by chance"),
    ):
        if pair in against:
            d = against[pair]
            lines.append(f"- **{question}** (binary rewards, G = 8, Adam, {d.seeds} seeds): {said(d, margin)}.")
    # the first condition is the main one, which is above
    for about, some in list(conditions.items())[1:]:
        each = "; ".join(said(d, margin) for d in some)
        lines.append(f"- **{about[0].upper()}{about[1:]}** ({some[0].seeds} seeds, exploratory): {each}.")
    head = "## The answer" if whole else "## The answer so far"
    listed = "Differences are points of held-out accuracy with 95% intervals; positive favors the first arm.\n\n"
    return "\n\n".join([head, advice(margin, against), listed + "\n".join(lines)])


def advice(margin: float, against: dict[tuple[str, str], Difference]) -> str:
    """Say whether the main comparison gives a reason to change the normalization one has."""
    pairs = (("durian", "grpo"), ("durian", "batch-std"), ("batch-std", "grpo"))
    if not all(pair in against for pair in pairs):
        return "Too few runs are done to say anything about training."
    verdicts = {pair: against[pair].verdict(margin) for pair in pairs}
    if different := [pair for pair, verdict in verdicts.items() if verdict == "different"]:
        each = "; ".join(said(against[pair], margin) for pair in different)
        return f"**There is a reason to change, under conditions like these:** {each}."
    if any(verdict == "undecided" for verdict in verdicts.values()):
        return "**No reason was found to leave the normalization you have**, and none is excluded yet."
    return (
        "**No reason was found to leave the normalization you have.** With binary rewards Durian, batch std and GRPO"
        f" end within {100 * margin:g} point of one another; batch std shows no gain over GRPO either."
    )


def said(d: Difference, margin: float) -> str:
    """Say a difference in points, with its interval and its verdict."""
    interval = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    return f"{d.arm} minus {d.baseline} {interval}, {d.verdict(margin)}"


def _span(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"
