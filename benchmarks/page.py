"""Write ``docs/benchmarks.md``, its pictures and the README's figures from the records: ``python -m benchmarks.page``.

Nothing is measured here, and nothing is written by hand: a test holds the pages against the records.
"""

import re
from pathlib import Path

from benchmarks import records
from benchmarks.amounts import amount, limit, short
from benchmarks.records import ROOT, Measurement, Origin

PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
PICTURES = ROOT / "docs" / "benchmarks"
QUIET = 0.1  # cores: what an idle machine's own chores take

HEAD = """# Benchmarks

Written by `python -m benchmarks.page` from the records in
[`benchmarks/results/`](../benchmarks/results); `make bench` measures everything again in its own environment
(`.venv-bench`) and rewrites this page, its pictures and the README's figures.

All candidates of a case run in one process and take turns: each round times each of them, in random order, for at least
10 ms. A **ratio** is the median over the rounds of a candidate's time over its baseline's in the same round, and
its range holds the middle 60% of the rounds. Everything runs on one thread. Baselines from other projects are their
released packages, called through their own functions; results that should be equal are first checked to agree.
"""

NO_GPU = """Not measured yet. `python -m benchmarks.gpu` counts kernels and synchronizations and times CUDA-graph
replays, confidences, and the entropies of 512 images, in one run. So far it has only been run dry, on a CPU. What was
verified without a GPU, and what times it predicts, is on [a page of its own](gpu.md)."""

TOPICS = {
    "advantage": (
        "Advantages",
        "The plain GRPO expression is `(r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + eps)`. verl gets"
        " responses of one token, so that only its group arithmetic counts. TRL computes its advantages in the"
        " middle of a method; the statements timed are taken out of its installed source. The loop of verl is left out"
        " where one call takes seconds.",
    ),
    "confidence": (
        "Confidence",
        "Against a sum written by hand. Calls repeat on the same tensors, and the 34 MB of 4,096 x 2,048 log-"
        "probabilities may or may not stay in a cache that other machines share. On the machine of this"
        " record the ratio without a mask was between 1.2 (the baseline waits for memory, 1.4 ms) and 1.7 (it does not,"
        " 0.65 ms) from day to day. The sum is exact to float32's last bit because it adds in float64; the same plain"
        " sum in float64, compiled for this one size, is measured beside it, and is all that is left to gain.",
    ),
    "gpu": (
        "On a GPU",
        "`python -m benchmarks.gpu` on a machine that has one. Replays are those of a captured CUDA graph; a bandwidth"
        " is bytes read and written over time; whether a call waits for the GPU is told by"
        ' `torch.cuda.set_sync_debug_mode("error")`.',
    ),
    "entropy": (
        "Entropies and buckets of images",
        "A Gram product is `x @ x.T` of the same features. The logarithm of the Vendi score of the centered patches is"
        " the same number as their eigen-entropy; vendi-score multiplies and solves with the BLAS of NumPy and SciPy,"
        " and its float32 result has the positive half of the noise of zero eigenvalues in it"
        " ([numerics](numerics.md)). Certified buckets are checked to be those of the exact entropies; how many images"
        " needed eigenvalues for that is recorded.",
    ),
    "entropy_of_512_images": (
        "Buckets of a whole batch of images",
        "`python -m benchmarks.entropy --images 512`, which `make bench` leaves out: the same on 512 images, 12"
        " minutes.",
    ),
}

# what the README quotes: topic, candidate, baseline, sentence
QUOTED = (
    (
        "advantage",
        "durian_advantage, compiled",
        "plain GRPO expression",
        "All three components for 512 x 8 rewards take {p50} compiled, **{ratio} times** the plain GRPO expression.",
    ),
    (
        "advantage",
        "verl 0.9.1, loop",
        "durian_advantage, compiled",
        "The GRPO loop of the released verl 0.9.1 takes **{ratio} times** as long for the same batch.",
    ),
    (
        "confidence",
        "compiled, bool mask",
        "torch.where(mask, logprobs, 0).sum(-1)",
        "Confidences of 4,096 x 2,048 masked log-probabilities take {p50} compiled, **{ratio} times** what"
        " `torch.where(mask, logprobs, 0).sum(-1)` takes.",
    ),
)
ELSEWHERE = """The targets were set on the machine above. On one whose vectors are half as long, ratios to a single fast
call of torch suffer most. *Before*: the code at `{before}`, measured right afterwards; two runs of one code differ by
up to a tenth, and sums of log-probabilities by more. Against the product, entropies of images of up to 384 patches take
a fifth to a third longer since then, those of larger ones 3% to 6%: terms of products are summed smallest first, and
matrices of up to 384 rows are solved in float64, which keeps spectra along the axes within 2e-6."""
BLOCK = re.compile(r"(<!-- figures: .*? -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def page() -> str:
    """Return the text of the page."""
    found = {topic: records.read(records.RESULTS / f"{topic}.csv") for topic in ordered_topics()}
    aims = [m for measurements, _ in found.values() for m in measurements if m.target]
    met = sum(m.met for m in aims)
    parts = [
        HEAD,
        f"## Targets: {met} of {len(aims)} met",
        "![Each ratio with its target; left of the line it is met](benchmarks/targets.png)",
        table(aims, targets=True),
    ]
    parts += elsewhere()
    for topic, (measurements, where) in found.items():
        title, text = TOPICS.get(topic, (topic.replace("_", " ").capitalize(), ""))
        parts += [f"## {title}", *([text] if text else []), made_on(where)]
        if any(m.figure for m in measurements):
            parts.append(f"![{title}: time over size, log-log](benchmarks/{topic}.png)")
        rows = table(measurements, targets=False)
        parts.append(f"<details><summary>All {len(measurements)} measurements</summary>\n\n{rows}\n\n</details>")
    if "gpu" not in found:
        parts += [f"## {TOPICS['gpu'][0]}", NO_GPU]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def elsewhere() -> list[str]:
    """Return the targets on a CPU that is slower, now and for the code before, one run after the other."""
    now, before = (
        [records.read(records.RESULTS / folder / f"{topic}.csv") for topic in ("advantage", "confidence", "entropy")]
        for folder in ("avx2", "avx2-before")
    )
    earlier = {(m.case, m.candidate, m.baseline): m for measurements, _ in before for m in measurements if m.target}
    aims = [(m, earlier[m.case, m.candidate, m.baseline]) for found, _ in now for m in found if m.target]
    rows = [
        f"| {m.case} | {m.candidate} | {m.baseline} | {short(m.ratio)} | {short(old.ratio)} | {limit(m.target)}"
        f" | {'met' if m.met else '**not met**'} |"
        for m, old in aims
    ]
    head = "| case | what | against | ratio | ratio before | target |  |"
    return [
        f"## On a CPU without AVX-512: {sum(m.met for m, _ in aims)} of {len(aims)} met",
        ELSEWHERE.format(before=before[0][1].revision),
        made_on(now[0][1]),
        "\n".join([head, "|---" * 7 + "|", *rows]),
    ]


def ordered_topics() -> list[str]:
    """Return the topics recorded, those introduced above first."""
    known = [topic for topic in TOPICS if topic in records.topics()]
    return known + [topic for topic in records.topics() if topic not in TOPICS]


def table(measurements: list[Measurement], *, targets: bool) -> str:
    """Return measurements as a Markdown table, with their targets or with their times."""
    last_columns = ("target", "") if targets else ("p20", "median", "p80")
    columns = ("case", "what", "against", "ratio", "range", *last_columns)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for m in measurements:
        aim = (limit(m.target), "met" if m.met else "**not met**") if targets else ()
        last = aim or [amount(quantile, m.unit) for quantile in (m.p20, m.p50, m.p80)]
        span = f"{short(m.ratio_p20)} to {short(m.ratio_p80)}" if m.rounds > 1 else "one count"
        cells = [m.case, m.candidate, m.baseline, short(m.ratio), span, *last]
        if m.candidate == m.baseline:
            cells[2:5] = ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def made_on(where: Origin) -> str:
    """Say what a record was made on."""
    if where.others < QUIET:
        noise = "nothing else ran meanwhile"
    elif where.others >= QUIET:
        noise = f"other work kept {where.others:.2g} cores busy meanwhile"
    else:
        noise = "what else ran is not known"
    versions = f"Python {where.python}, torch {where.torch}, numpy {where.numpy}, einops {where.einops}"
    return (
        f"{where.date} UTC on {'' if where.device == 'cpu' else where.device + ', '}{where.cpu}, {where.cores} cores,"
        f" {where.memory_gib} GiB; threads used: {where.threads};"
        f" {noise}. {versions}, durian-adv {where.durian_adv} at `{where.revision or 'no commit'}`"
        f"{', ' if where.packages else ''}{where.packages}."
    )


def readme_figures() -> str:
    """Return the figures the README quotes."""
    lines = []
    for topic, candidate, baseline, sentence in QUOTED:
        measurements, _ = records.read(records.RESULTS / f"{topic}.csv")
        chosen = [m for m in measurements if (m.candidate, m.baseline) == (candidate, baseline) and m.target]
        if len(chosen) != 1:
            raise LookupError(f"{topic}.csv: expected one row of {candidate!r} against {baseline!r} with a target")
        lines.append("- " + sentence.format(ratio=short(chosen[0].ratio), p50=amount(chosen[0].p50, chosen[0].unit)))
    return "\n".join(lines) + "\n"


def with_figures(readme: str) -> str:
    """Return the README with the figures of the records."""
    changed, count = BLOCK.subn(lambda match: match[1] + readme_figures() + match[2], readme)
    if count != 1:
        raise LookupError(f"README.md: expected one block of figures, got {count}")
    return changed


def main() -> None:
    """Write everything."""
    from benchmarks import figures  # matplotlib is needed for the pictures alone

    PICTURES.mkdir(exist_ok=True)
    for topic in records.topics():
        figures.scaling(topic, PICTURES / f"{topic}.png")
    figures.targets(PICTURES / "targets.png")
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {Path(PAGE).relative_to(ROOT)}, its pictures, the figures of README.md")


if __name__ == "__main__":
    main()
