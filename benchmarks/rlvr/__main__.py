"""The demonstration: `python -m benchmarks.rlvr` from the repository root; needs no network and no GPU."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.rlvr.arms import ARMS
from benchmarks.rlvr.experiment import Start, prepare, reinforce
from benchmarks.rlvr.figure import draw_figure
from benchmarks.rlvr.language import decode
from benchmarks.rlvr.records import rollout_lines
from benchmarks.rlvr.report import environment, summarize, table
from benchmarks.rlvr.rollout import sample_responses
from durian_adv.data.scoring.efficientnet import LAYERS


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the settings of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rlvr", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--arm", choices=ARMS, default="durian", help="advantage estimator of the RL phase")
    parser.add_argument("--seed", type=int, default=0, help="seed of images, policy, demonstrations and sampling")
    parser.add_argument("--steps", type=int, default=30, help="number of RL steps")
    parser.add_argument(
        "--prompts", type=int, default=96, help="prompts per step; 96 put 8 in each of 12 confidence buckets"
    )
    parser.add_argument("--group-size", type=int, default=8, help="responses per prompt")
    parser.add_argument("--images", type=int, default=4000, help="number of training images")
    parser.add_argument("--held-out-images", type=int, default=500, help="number of held-out images, one prompt each")
    parser.add_argument("--warmup-steps", type=int, default=600, help="number of supervised steps")
    parser.add_argument("--guess-share", type=float, default=0.35, help="share of demonstrations that guess")
    parser.add_argument("--clutter", type=float, default=1.0, help="clutter of the most cluttered image, from 0")
    parser.add_argument(
        "--layer", choices=LAYERS, default="stride16", help="layer of the encoder that gives the patch features"
    )
    parser.add_argument("--samples", type=int, default=8, help="responses per held-out prompt in the evaluation")
    parser.add_argument(
        "--threads", type=int, default=1, help="number of torch threads; one never waits for a busy core"
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="output folder")
    options = parser.parse_args(arguments)
    if options.images < max(options.prompts, 64):
        parser.error("--images: a step asks about different images, so as many as --prompts, and 64 for the warm-up")
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Warm up, train, examine, and write the figure, the results and the rollouts."""
    options = parse_arguments(arguments)
    began = time.perf_counter()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    start = prepare(
        seed=options.seed,
        images=options.images,
        held_out_images=options.held_out_images,
        clutter=options.clutter,
        layer=options.layer,
        warmup_steps=options.warmup_steps,
        guess_share=options.guess_share,
        samples=options.samples,
    )
    examples = _pick_examples(start)
    _answer(start, examples, "before")
    with (options.out / "rollouts.jsonl").open("w") as rollouts:
        run = reinforce(
            start,
            ARMS[options.arm],
            seed=options.seed,
            steps=options.steps,
            prompts=options.prompts,
            group_size=options.group_size,
            samples=options.samples,
            on_step=lambda number, step: rollouts.writelines(rollout_lines(number, step)),
        )
    _answer(start, examples, "after")

    results = {
        "settings": {**vars(options), "out": str(options.out)},
        "parameters": sum(weight.numel() for weight in start.policy.parameters()),
        **summarize(start.accuracy, run, group_size=options.group_size, seed=options.seed),
        "environment": environment(),
    }
    draw_figure(results, examples, options.out / "figure.png")
    seconds = {**start.seconds, **run.seconds, "all": time.perf_counter() - began}
    (options.out / "results.json").write_text(json.dumps({**results, "seconds": seconds}, indent=1))

    print(f"\n{table(results)}\n")
    print(", ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.items()))
    for name in ("figure.png", "results.json", "rollouts.jsonl"):
        print(options.out / name)
    print(f"\nWould Durian change anything for these rollouts? durian-adv report {options.out / 'rollouts.jsonl'}")
    return results


def _pick_examples(start: Start) -> list[dict[str, Any]]:
    """Take the held-out prompts at the 10% and 90% quantiles of visual entropy."""
    order = start.held_out.visual_entropy.argsort().tolist()
    rows = [order[len(order) // 10], order[-1 - len(order) // 10]]
    return [
        {
            "row": row,
            "image": start.held_out.scenes[row].image,
            "visual_entropy": start.held_out.visual_entropy[row].item(),
            "question": " ".join(question.words[:-1]) + "?",
            "answer": question.answer,
        }
        for row, question in ((row, start.exam.questions[row]) for row in rows)
    ]


def _answer(start: Start, examples: list[dict[str, Any]], when: str) -> None:
    """Add a sampled response to each example."""
    rollouts = sample_responses(start.policy, start.held_out, start.exam, 1, torch.Generator().manual_seed(0))
    for example in examples:
        example[when] = decode(rollouts.tokens[example["row"], 0])


if __name__ == "__main__":
    main()
