"""The sentences of docs/evidence.md; its numbers are filled in from the records."""

from typing import Any

from studies.evidence.comparison import Difference

HEAD = """# Evidence

Does it matter how a group's rewards are normalised: where, and by how much? This page compares Durian with the other
group normalisations on tasks whose difficulty is known, and says what came out, whichever way it fell. It is written
by `python -m studies.evidence page` from the records in
[`studies/evidence/records/`](../studies/evidence/records), one table of all runs with seeds, settings and versions.
`make evidence` does the small version (mechanism, and 4 arms x 6 seeds x 25 steps) in under 10 minutes of one core;
`python -m studies.evidence run` trains whatever run has no record yet, may be killed at any moment, and goes on
where it was."""

DERIVATION = r"""## One update, without training

**Why the arms are so alike.** Every arm centres a reward by its prompt's mean and multiplies by one positive factor a
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
warm policy and from two later checkpoints of one run. And the optimiser changes what counts. Plain SGD passes on the
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
points the paper reports. The pilots' paired deviation after 100 steps is {deviation:.2f} points ({freedom} degrees of
freedom, so its upper 80% limit, {upper:.2f}, counts too). What n seeds can detect, with a power of 80% at 5% over all
comparisons:"""

MAIN = """\
Same prompts in the same order for every arm, and the same random number decides the same token of the same response,
so arms share their noise until their policies part. Differences are paired by seed; the interval is a bootstrap over
seeds (BCa). *Indistinguishable* means that two one-sided tests put the difference inside the margin. All p values are
corrected over the table (Holm)."""

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

TAIL = """## What this cannot say

One encoder, one kind of task, one warm policy, and a policy of 0.27M parameters that RL mostly teaches to choose its
better habits. The seeds vary prompts and sampling, not the warm-up. Visual entropy follows clutter closely here, by
design; on natural images it need not. The paper trains 7B parameters on 512 prompts x 8 a step, where 12 buckets hold
43 prompts each, and its rewards mix 0.9 accuracy with 0.1 format. What would decide it: the paper's own setting,
GRPO, batch std, random buckets and Durian, at least five seeds each, with the paired deviation reported."""


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
        (("durian", "batch-std"), "Durian or one line of batch std"),
        (("durian", "dr-grpo"), "Durian or no std at all"),
        (("durian", "random-buckets"), "Buckets by difficulty or by chance"),
    ):
        if pair in against:
            d = against[pair]
            lines.append(
                f"- **{question}** (binary rewards, G = 8, Adam): {d.verdict(margin)}. {pair[0]} minus {pair[1]}"
                f" is {100 * d.mean:+.2f} points of held-out accuracy, 95% interval [{100 * d.low:+.2f},"
                f" {100 * d.high:+.2f}], {d.seeds} seeds."
            )
    # the first condition is the main one, which is above
    for about, some in list(conditions.items())[1:]:
        each = "; ".join(
            f"{d.arm} minus {d.baseline} {100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}],"
            f" {d.verdict(margin)}"
            for d in some
        )
        lines.append(f"- **{about[0].upper()}{about[1:]}** ({some[0].seeds} seeds, exploratory): {each}.")
    advice = choose(margin, against.get(("durian", "batch-std")))
    head = "## The answer" if whole else "## The answer so far"
    return "\n\n".join(part for part in (head, "\n".join(lines), advice) if part)


def choose(margin: float, found: Difference | None) -> str:
    """Say when to choose Durian over one line of batch std."""
    if found is None:
        return "Too few runs are done to say anything about training."
    verdict = found.verdict(margin)
    if verdict.startswith("indistinguishable"):
        here = "Under conditions like these, take batch std: one line, and the same result."
    elif verdict == "undecided":
        here = (
            "Under conditions like these nothing here gives a reason to leave batch std, and nothing excludes one yet."
        )
    elif found.mean > 0:
        here = "Under conditions like these Durian is worth its parts."
    else:
        here = "Under conditions like these batch std is not only simpler but better."
    return (
        f"**When to choose Durian over one line of batch std?** {here} A reason to prefer Durian could exist where the"
        " stds of buckets differ much from one another: accuracies near 0 or 1 in some buckets and not in others, many"
        " prompts a bucket, rewards of several sizes. Where every bucket's accuracy lies between 20% and 80% its std"
        " lies between 0.4 and 0.5, and dividing by it is dividing by a constant. With few prompts a bucket its std is"
        " noise, and random buckets of the same sizes tell how much of an effect is only that."
    )


def _span(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"
