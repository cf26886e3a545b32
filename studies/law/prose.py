"""The words of `docs/law.md` and `docs/which-normalization.md`; numbers are filled in by `page.py`."""

HEAD = """
# When does a shared std help?

Group normalizations differ in one number per prompt: the factor that multiplies its centered rewards. This page
derives which factors are best, computes from that what every estimator is worth for a given structure of rewards, and
says where the derivation ends. All numbers here are **predicted**, but for those of [the test](#the-test), which are
measured by training; `python -m studies.law page` computes them, writes this page and draws its pictures. What else
training has shown is in [Evidence](evidence.md); what to do about it, in [Which normalization for your
rewards?](which-normalization.md)

In short:

- Where rewards are right or wrong, one factor for all prompts is best. No std of any kind can win; none loses much.
- Where *kinds* of prompts differ in the unit or the noise of their rewards, one std for all loses. A std per kind does
  not, and Durian's scores help as far as they tell the kinds apart.
- GRPO follows such differences by itself, but it enlarges groups that differ only in a small term.
- [Trained](#the-test), batch std falls behind as the ratio of variances grows, by about a third of what is predicted,
  and as the unit of one kind gets smaller, about as predicted; Durian falls behind there twice as far as predicted. No
  shared std beat GRPO on kinds that differ. With a tie-break in all rewards, and groups that agree left in the batch,
  GRPO falls behind every shared std. By the declared criterion the law has the right sign and the wrong size.
"""

DERIVATION = r"""
## The law

Every estimator here is $A_{s,i} = f_s (r_{s,i} - \bar r_s)$ for rollout i of prompt s, with G rollouts per prompt.
Let c be what should improve, such as the correctness of the answer, whatever else the reward r contains. Per unit of
factor, a prompt brings signal and noise energy

$$
w_s = E \sum_i (r_{s,i} - \bar r_s)(c_{s,i} - \bar c_s), \qquad v_s = E \sum_i (r_{s,i} - \bar r_s)^2.
$$

**Assumptions.** The gradient of the log-probability of a rollout is $(c_{s,i} - p_s) d + n_{s,i}$, where $p_s$ is the
mean of c. The direction d, along which c improves, is the same for all prompts. The rest n has mean 0 and one
covariance for all, and is independent of the rewards and between rollouts. It is so large that the update's noise is
its energy.

**Worth.** The update $\sum_{s,i} A_{s,i} (\ldots)$ then has the mean $d \sum_s f_s w_s$ and a variance proportional
to $\sum_s f_s^2 v_s$. A step of size $\eta$ gains $\eta$ times the first, and loses $\eta^2$ times the second to
curvature, up to constants. The best $\eta$ gains

$$
\frac{(\sum_s f_s w_s)^2}{\sum_s f_s^2 v_s}
$$

up to a constant. A common factor of all $f_s$ cancels: it only rescales the learning rate.

**The best factors.** By the Cauchy-Schwarz inequality, with $f_s w_s = (f_s \sqrt{v_s}) (w_s / \sqrt{v_s})$,

$$
\Big(\sum_s f_s w_s\Big)^2 \le \sum_s f_s^2 v_s \, \sum_s \frac{w_s^2}{v_s},
$$

with equality exactly where $f_s \sqrt{v_s}$ is proportional to $w_s / \sqrt{v_s}$: the best factors are $f_s \propto
w_s / v_s$. An estimator's *worth* is the ratio of the two sides,

$$
h = \frac{(\sum_s f_s w_s)^2}{\sum_s f_s^2 v_s \, \sum_s w_s^2 / v_s} \le 1.
$$

Each step gains h times what the best step gains, so at its own best learning rate an estimator of worth h needs 1/h
times as many steps.

**Factors that look at the group.** GRPO's factor depends on the rewards that were drawn. Its signal is then
$E f_s S_s$ and its noise $E f_s^2 V_s$, where S and V are the sums above before the expectation.

**Kinds.** The sums may run over kinds of prompts instead, with w and v summed over each kind. The best is then one
factor per kind, and its worth is 1 below. That is what an estimator can hope for: the best factor of every single
prompt would need its w and v, which a few rollouts do not tell. An estimator whose factors vary within a kind may
exceed 1.
"""

BINARY = r"""
## Right or wrong

If the reward is 0 or 1 and is what counts, r = c, then $w_s = v_s$, and the best factors are all equal: Dr. GRPO, batch
std, RLOO and REINFORCE++-baseline have worth 1, whatever the accuracies. Every other estimator's worth is the squared
cosine of its advantages with Dr. GRPO's. GRPO has {binary:.3f} at G = 8.

With groups without signal dropped, every std of every bucket comes from groups with 1 to G - 1 right. It lies in
$[\sqrt{{G - 1}} / G, 1/2]$, so [the bound on the cosine](evidence.md#one-update-without-training) holds for Durian too,
for any scores, buckets and weights: at least {bound:.3f} at G = 8. No advantage of a bucket exceeds $\sqrt{{G - 1}}$
= {largest:.2f}. With such groups *kept* there is no such bound: the std of a bucket of hard prompts goes to 0, and the
better the scores find the hard prompts, the lower Durian's worth.

On prompts that get ever harder, GRPO's factor in groups with signal tends to $\sqrt G$ = {hardest:.2f}, and a bucket's
factor, $1 / \sqrt{{p (1 - p)}}$, to infinity: 10 at an accuracy of 0.01. There, shared stds weight hard prompts *more*
than GRPO does.

Accuracies of steps 1 and 60 are logit-normal distributions fitted to Appendix A of the paper (arXiv 2602.21743).
"""

GAUSSIAN = r"""
## Graded rewards, and noise

Let rewards be Gaussian with one std and be what counts. The centered rewards of a group point in a random direction
and have the length $\sigma \chi$, with a chi distribution of G - 1 degrees of freedom. With S = V and a constant best
factor, GRPO's worth is $(E \chi)^2 / E \chi^2 = c_4(G)^2$, where $c_4(G) = \sqrt{{2 / (G-1)}} \, \Gamma(G/2) /
\Gamma((G-1)/2)$ corrects the bias of a std of G numbers: {c8:.2f} at G = 8, {c4:.2f} at 4, {c2:.2f} at 2.

The same holds where answers vanish in the noise of a judge, r = c + n. The derivative of $\tilde r / |\tilde r|$ along
$\tilde c$ averages to $|\tilde c|^2 (1 - 1/(G-1)) \, E\, 1/|\tilde n|$, and $(G - 2) E\, 1/\chi = E \chi$ leads back to
$c_4(G)^2$. That is the price of a std from G rewards.
"""

KINDS = r"""
## Kinds of prompts that differ in unit or noise

Let two kinds have equal signal and variances in the ratio R, half of the prompts each: one has a noisier judge. Best
are factors of 1/variance. One std for all has worth $4R/(1+R)^2$, a std per kind $(1+\sqrt R)^2 / (2(1+R))$, and
GRPO, which is a std per kind from G rewards, $c_4(G)^2$ times that (all rewards Gaussian):
"""

AFTER_KINDS = r"""
The std of eqs. 11-13 is that of raw rewards, so it includes the differences between prompts' means. These are the same
for a noisy kind and hide a part of the ratio: with right-or-wrong answers under the noise, a std per kind is worth
{noise:.2f} at R = 9 instead of 0.80.

If kinds differ in *unit* instead (a reward function that pays 1, another that pays 0.1, for answers that count alike),
best is 1/unit, which is exactly what a std per kind gives. The variance ratio alone does not tell the two apart.
Whether the kinds should count alike is yours to say: the law takes c as given.

Within a kind, a judge's noise makes the best factor depend on the prompt: $p (1-p) / (p (1-p) + \sigma^2)$. Against
that ideal, one factor for all has worth {judge:.2f} at a noise of std 1. It is a curriculum, and no std gives it.
"""

SMALL_TERMS = r"""
## Small terms: tie-breaks, lengths, format slips

A term of std t that says nothing of the answer hardly changes a group whose answers differ. A group whose answers are
alike differs in this term only. GRPO scales it up to the size of all others, however small t is. That energy is pure
noise: GRPO's worth falls to its worth without the term times the share of groups with differing answers, {signal:.2f}
here, so to {tie:.2f}. With 0.9 accuracy + 0.1 format and 10% slips it is {format:.2f}. Shared stds leave small terms
small. If a filter replaces groups by their *answers* (all right or all wrong), the term can do no harm and GRPO is
back at {filtered:.3f}; a filter by the *reward* lets them pass.
"""

ALL = r"""
## All cases

Accuracies as in step 1 above; 8 rollouts where nothing else is said; Durian with the default weights, both scores
correlated {quality:g} with the kind where there are two, else with the difficulty. "Kept" and "dropped" say what
happens to groups without signal. Batch std stands for every estimator with one factor for all. Right-or-wrong terms
are enumerated exactly; Gaussian terms are drawn, with standard errors of at most {error:.3f}. Buckets are taken in
the limit of many prompts; batches of 512 x 8 through the library's own functions agree within 0.03. In bold: within
0.02 of the row's best.
"""

SCORES = r"""
**Left.** GRPO drops from {binary:.2f} as soon as one kind has any noise: half of the groups whose answers agree then
differ in the noise, and GRPO scales them up. Beyond that it follows the ratio.

**Right: what scores must know.** Scores that know nothing make Durian batch std with a tenth of GRPO. Scores that
know the difficulty lower its worth where rewards are right or wrong. Scores that know the *kind* raise it, slowly at
first: a correlation of 0.5 is worth hardly more than none, because most prompts of a bucket are then still of both
kinds. A kind that is known needs no score: Durian's `category` component, or `shared_std_advantage(rewards, kind)`.
"""

LOG = r"""
## On your own log

`durian_adv.worth.predicted_worth` estimates the same from rewards and advantages, with a standard error over prompts.
It needs to know what counts (`correctness`) and which kinds there are (`category`); without them it can say nothing
of noise and units.

```python
>>> import torch
>>> from durian_adv import grpo_advantage, shared_std_advantage
>>> from durian_adv.baselines import batch_std_advantage
>>> from durian_adv.worth import predicted_worth
>>> draw = torch.Generator().manual_seed(0)
>>> correct = (torch.rand(512, 8, generator=draw) < torch.rand(512, 1, generator=draw)).double()
>>> source = torch.arange(512) % 2
>>> rewards = correct * torch.where(source == 0, 1.0, 0.1)[:, None]  # two reward functions, in units 1 and 0.1
>>> rewards = rewards + 0.01 * torch.rand(512, 8, generator=draw)  # and a length term
>>> found = predicted_worth(
...     rewards,
...     {
...         "grpo": grpo_advantage(rewards),
...         "batch_std": batch_std_advantage(rewards),
...         "by_source": shared_std_advantage(rewards, source),
...     },
...     correctness=correct,
...     category=source,
... )
>>> for name, (worth, error) in found.items():
...     print(f"{name}: {worth:.2f} +- {error:.2f}")
grpo: 0.76 +- 0.02
batch_std: 0.59 +- 0.02
by_source: 1.00 +- 0.00

```
"""

LIMITS = r"""
## What the law leaves out

- **One direction for all prompts.** If kinds need different skills, weighting one up teaches that one.
- **Stability.** The law lets noise alone bound the learning rate. In [the test](#the-test) something else may have.
- **The learning rate.** Worths compare estimators at their own best rates; at a common rate their sizes count as well.
- **Adam and clipping.** Both weaken what depends on the size of a single update.
- **What counts.** Length, format and style do not count here unless c contains them.
- **Later steps.** Accuracies, noise and kinds change as training goes on; worth is of one step.
- **Few prompts per bucket.** The limit of many prompts says nothing of a std from two or three of them.
"""

TEST = """
## The test

Whether training follows the worths is tested by an experiment that was [declared](../studies/law/declaration.json)
before it was run, with the amendments that time forced, all of them made before the first run that counts. Worths were
fixed then; what is [expected in points](../studies/law/records/expected.json) was written down before the runs of each
outcome, from the curves of its pilots. This tests the law, not the paper's claim: the policy is tiny, and the scores
are built to follow the kind.

**The task.** A policy of 30,467 parameters reads glyphs under noise, then computes a chain of one to three operations
on what it has read, token by token. 512 prompts x 8 rollouts per step, 200 steps of Adam, rewards of 0.9 accuracy + 0.1
format; prompts whose answers are all right or all wrong are replaced by others. Half of the prompts, by the toss of a
coin, are of a second kind: their rewards get a judge's noise, so that the within-prompt variances of the two kinds are
1 to R at the first step. Arms of a seed share the initial weights, the prompts and the random numbers. Held-out
accuracy is computed, not sampled: its only noise is that of training.

Before training {signal:.0f}% of the groups have signal and {extreme:.0f}% of these are extreme (the paper: 63% and
37%). Misread symbols spread over thirds of visual entropy as {perception}%
(the paper's Table 5: 23.6 / 31.3 / 45.1), miscomputed results over tenths of confidence as
{reasoning}% (its Table 6: 13.4 to 4.2); a response may have
both errors. After the filter, the two scores correlate {quality:.2f} with the kind. The noise of a step is
{noise_1:.1f} times its signal at R = 1 and {noise_9:.0f} times at R = 9, as the law assumes.

**Prediction.** If A(t) is the mean curve of the std per kind, of worth h, an estimator of worth g ends at A(200 g / h).
The law fails if observed differences do not grow with predicted ones, and it is of the wrong size if their slope is not
1. The tables take A from the runs themselves; with the points written down before, slopes are {expected}. Learning
rates were chosen on {pilot_seeds} other seeds, over factors of 2, for the first and the last dose of each outcome, and
are interpolated between them. At R = 1 and at a unit of 1, which are the same runs, Durian, random buckets and std by
kind take batch std's rate.
"""

ARMS_TABLE = """
All arms, in points, with 95% intervals (Student's t over paired seeds). Worths are predicted before training, and
estimated by `durian_adv.worth.predicted_worth` from each run's first 20 steps. Only the table above is corrected for
multiple comparisons:
"""

WHY = """
**Why the differences are smaller than predicted** (looked at after the first dose, not declared). Worths are not at
fault: those measured on the first 20 steps are the predicted ones, and they hardly change until the end. What does not
hold is the step from worth to speed. The law lets a noisy arm take smaller steps, its best rate falling with the root
of its worth, so that its speed falls with the worth itself. The pilots chose nearly one rate for all arms, although 2
seeds and factors of 2 can hardly resolve the factor of 1.5 that the law expects. If something other than this noise
bounds the rate, the gain of normalized updates goes with the *root* of worth. That is a guess made afterwards, and the
units below do not bear it out. *Speed*: the steps that std by kind needs to get where an arm ends, over the 200 that
the arm took.
"""

SGD = """
Plain SGD has such a bound, too (not declared). Three arms, {seeds} seeds, R = 9, last accuracy by learning rate:
"""

AFTER_SGD = """
All three are best at a rate of 4, worse at 8, and forget the task at 16. At their best rates Durian ends {best} points
from batch std, which four seeds do not decide; at a rate of 1, {small}.
"""

AFTER_WHY = """
For batch std and random buckets the root is nearer than the worth. It does not explain the rest: the means of GRPO and
Durian are above that of a std by kind at every R, with intervals that exclude 0 in four of eight cases (GRPO at R = 1,
2, 4; Durian at R = 9), and also at R = 1, where the law puts Durian level with it and GRPO 0.1 points below. Rates
were chosen on 2 seeds, and another one for std by kind could move all differences from it by some tenths of a point.
So read differences below half a point as none.
"""

UNIT = """
### Kinds that differ in unit

The second outcome: the same task, no noise, and the rewards of one kind times a unit. Over all arms the slope includes
1; arm by arm the sizes differ. Batch std and random buckets fall behind about as predicted, Durian, whose buckets mix
the kinds, about twice as far. GRPO, which rescales every prompt by itself and needs to know no kinds, ends above a std
by kind, where slightly below is predicted.
"""

TIE_BREAK = """
### A tie-break in all rewards

The third outcome: one kind of prompts, no filter, and noise of a small std in all rewards. Without any, GRPO
ends 0.2 to 0.6 points above the others, where the law puts it 0.6 to 0.7 below: the wrong sign. With some, it falls
behind every std that prompts share, by about a third to a half of what is predicted. A std by kind is one of each
random half of the prompts here, and so nearly batch std.
"""

KEPT = """
Durian with groups without signal kept and dropped differs only where there are such groups, at a tie-break of 0:
dropped minus kept is {points} points (a comparison that was not declared).
"""

SECONDARY = {"unit": UNIT, "tie_break": TIE_BREAK}
DIALS = {"variance": "ratio of variances", "unit": "unit of one kind", "tie_break": "std of the tie-break"}

PREDICTED = """
**What was predicted.** Worths at every dose, rewards of 0.9 accuracy + 0.1 format. First over the ratio of variances,
groups replaced that are all right or all wrong; then over the unit of one kind, the same; then over a tie-break in all
rewards, one kind, no filter. Under the filter Durian should beat batch std ever more with the ratio, and *not* beat
GRPO from a ratio of 2 on.
"""

CLOSING = """
See also: [Evidence](evidence.md), [Recipes](recipes.md), [the report on a log](report.md).
"""

WHICH = """
# Which normalization for your rewards?

Choose by what your rewards are made of. Numbers from 0 to 1 are **predicted** worths: the share of the best step's
gain, derived in [When does a shared std help?](law.md). By the law 1 / worth is how many times as many steps are
needed; in [the test](law.md#the-test) noise cost about a third of that in points. The last column is **measured**:
differences of held-out accuracy in points after training, with 95% intervals, where [Evidence](evidence.md) or [the
test of the law](law.md#the-test) has them. An empty cell means that
nobody has measured it here.
"""

DEFAULT = """
Groups without signal, kept or dropped, make a difference only where no filter replaces them. Trained without a filter
on 0.9 accuracy + 0.1 format, dropped minus kept is {points} points: no reason to change the default, which stays
`no_signal="keep"`.
"""

UNTESTED = """
**Kinds that differ in noise** are what [the test of the law](law.md#the-test) trains on. It is running: no dose is
complete, so nothing is measured yet.
"""

ADVICE = {
    "binary": "what you have: all are near the best",
    "graded": "any std that prompts share; GRPO pays for a std from G rewards",
    "format": "what you have: GRPO should lose here, and did not in two trainings",
    "tie-break": "a std that prompts share, or a filter by answers",
    "filtered": "what you have: the filter removes the trouble",
    "judge": "a std that prompts share",
    "units": "GRPO, or a std per kind (`category`); not batch std",
    "units, tie-break": "a std per kind; Durian if kinds are unknown and its scores tell them apart",
    "noise 4": "GRPO, Durian or a std per kind",
    "noise 9": "GRPO or a std per kind; not batch std",
    "noise 9, tie-break": "a std per kind; Durian or GRPO if kinds are unknown",
    "noise 9, G = 4": "a std per kind; GRPO or Durian if kinds are unknown",
    "variance 1": "what you have",
    "variance 2": "GRPO, Durian or a std per kind",
    "variance 4": "GRPO, Durian or a std per kind; not batch std",
    "variance 9": "GRPO, Durian or a std per kind; not batch std",
    "unit 0.1": "GRPO, or a std per kind; not batch std, nor Durian",
    "tie_break 0.1": "a std that prompts share",
}

READING = """
In bold: within {close:g} of the best of the row. Batch std stands for Dr. GRPO, RLOO and REINFORCE++-baseline too,
which have one factor for all prompts; they differ in the learning rate they need. Durian is shown with scores that
correlate 0.8 with the kind (with the difficulty, where there is one kind); with scores that know nothing it is the
column "random buckets". "Kept" and "dropped": groups without signal, `no_signal="keep"` or `"drop"`.

**How to tell which row is yours.** `durian_adv.worth.predicted_worth` estimates the worth of any estimator from
rewards, correctness and kinds of a log ([example](law.md#on-your-own-log)). By eye: compare the within-prompt std of
the rewards by data source or reward function, and count the groups that differ although their answers do not.

**Where both are known.** With rewards of right or wrong, no difference was found beyond the margin of 1 point, as the
first row predicts. With 0.9 accuracy + 0.1 format the measurement points *against* the prediction: GRPO should lose
to a shared std, and ended {format_loss:.1f} points above Durian. It was an exploratory run of few seeds, at one
learning rate for all arms, on tasks where few groups have answers that all agree (9% at the start), so the predicted
loss is smaller there; but it does not support the row. [The test](law.md#a-tie-break-in-all-rewards) does not
either: without a tie-break GRPO ended {format_test} points from a std that prompts share, where {format_predicted}
is predicted. A tie-break of any size tried then cost it 0.6 points or more. R is the ratio of variances:

{tested}

**What is not known.** No training run here has had graded correctness, a tie-break beside kinds that differ, or kinds
that differ without a filter. For these the predictions are a derivation and no more.

{kept}

**Whatever you choose**, tune the learning rate again: the size of advantages changes with the normalization.
"""
