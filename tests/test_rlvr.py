"""The demonstration's parts: labels and answers, the verifier, the encoder, and a run small enough for a test."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.rlvr.__main__ import main
from benchmarks.rlvr.arms import ARMS, durian
from benchmarks.rlvr.encoder import Gallery, build_gallery
from benchmarks.rlvr.evaluation import paired_interval
from benchmarks.rlvr.language import (
    PAD,
    QUESTION_LENGTH,
    RESPONSE_LENGTH,
    TOKENS,
    boxed_answer,
    decode,
    encode,
    reward,
    well_formed,
)
from benchmarks.rlvr.policy import Policy
from benchmarks.rlvr.prompts import Prompts, ask_about, sample_prompts
from benchmarks.rlvr.questions import FORMS, Question, ask
from benchmarks.rlvr.rollout import Rollouts, response_logprobs, sample_responses, verify
from benchmarks.rlvr.scenes import COLORS, KINDS, PHOTOGRAPHS, Scene, draw_scene, draw_scenes, load_photograph
from benchmarks.rlvr.training import clipped_loss, train
from benchmarks.rlvr.warmup import demonstrate, warm_up
from durian_adv.cli import main as durian_adv
from durian_adv.data.scoring.efficientnet import LAYERS, encode_images, load_network

ROOT = Path(__file__).resolve().parent.parent
GROUP = 4


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    scenes = draw_scenes("train", 26, clutter=1.0, rng=np.random.default_rng(0))
    return build_gallery(scenes, 26, load_network(), title="test images")


@pytest.fixture
def policy(gallery: Gallery) -> Policy:
    torch.manual_seed(0)
    return Policy(gallery.patches.shape[-1])


@pytest.fixture
def prompts(gallery: Gallery) -> Prompts:
    return sample_prompts(gallery, 6, np.random.default_rng(1))


def scene_of(*cells: str) -> Scene:
    """Return a scene without an image: "red circle" a cell, the rest of its 16 cells empty."""
    pairs = [tuple(cell.split()) if cell else ("", "") for cell in (*cells, *[""] * (16 - len(cells)))]
    colors, kinds = zip(*pairs, strict=True)
    return Scene(np.zeros((128, 128, 3), np.uint8), kinds, colors, 0.0, "none")


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_no_photograph_is_in_both_splits():
    train, held_out = (set(PHOTOGRAPHS[split]) for split in ("train", "held_out"))
    assert not train & held_out
    assert len(train) >= 10
    assert len(held_out) >= 4
    # Not the same picture under two names either.
    thumbnails = [load_photograph(name)[::16, ::16][:16, :16] for name in sorted(train | held_out)]
    assert all(
        np.abs(one - other).mean() > 5.0
        for row, one in enumerate(thumbnails)
        for other in thumbnails[:row]
    )  # fmt: skip


@pytest.mark.parametrize("split", PHOTOGRAPHS)
def test_scenes_are_drawn_on_their_own_split(split):
    scenes = list(draw_scenes(split, 12, clutter=1.0, rng=np.random.default_rng(2)))
    assert {scene.photograph for scene in scenes} <= set(PHOTOGRAPHS[split])


def test_labels_say_what_is_painted():
    """The pixel in the middle of a cell has its label's color; an untouched cell has none of the four."""
    for scene in draw_scenes("train", 40, clutter=0.0, rng=np.random.default_rng(3)):
        assert 3 <= sum(map(bool, scene.kinds)) <= 9
        for cell, (kind, color) in enumerate(zip(scene.kinds, scene.colors, strict=True)):
            assert bool(kind) == bool(color)
            row, column = divmod(cell, 4)
            middle = scene.image[32 * row + 13 : 32 * row + 19, 32 * column + 13 : 32 * column + 19]
            if kind:
                pixel = np.median(middle, axis=(0, 1))
                hue = {name: _direction(pixel) @ _direction(np.array(rgb)) for name, rgb in COLORS.items()}
                assert max(hue, key=hue.get) == color


def _direction(color: np.ndarray) -> np.ndarray:
    centered = color.astype(float) - color.mean()
    return centered / max(np.linalg.norm(centered), 1e-9)


def test_clutter_is_a_dial_and_seeds_repeat():
    calm, same, busy = (
        [scene.image.astype(float) for scene in draw_scenes("train", 8, clutter=dial, rng=np.random.default_rng(4))]
        for dial in (0.0, 0.0, 1.0)
    )
    assert np.array_equal(calm, same)
    edges = [np.mean([np.abs(np.diff(image, axis=1)).mean() for image in images]) for images in (calm, busy)]
    assert edges[1] > 1.3 * edges[0]


def test_strokes_cross_empty_cells_too():
    gray, crossed = np.full((256, 256, 3), 128.0), []
    for clutter in (0.0, 0.5, 1.0):
        scene = draw_scene(gray, "gray", clutter=clutter, rng=np.random.default_rng(5))
        empty = np.kron(np.array([not kind for kind in scene.kinds]).reshape(4, 4), np.ones((32, 32), bool))
        crossed.append((scene.image[empty] != 128).any(axis=-1).mean())
    assert crossed[0] == 0
    assert 0 < crossed[1] < crossed[2] < 0.3


# --- questions ------------------------------------------------------------------------------------------------------


def recount(scene: Scene, words: tuple[str, ...]) -> str:
    """Answer a question from its words alone, by counting (color, kind) pairs."""
    pairs = Counter(zip(scene.colors, scene.kinds, strict=True))
    del pairs["", ""]
    by_kind = Counter()
    for (_, kind), number in pairs.items():
        by_kind[kind] += number
    match words:
        case ("how", "many", "shapes", "?"):
            return str(pairs.total())
        case ("which", "kind", "most", "?"):
            return by_kind.most_common(1)[0][0]
        case ("how", "many", color, "most", "kind", "?"):
            return str(pairs[color, by_kind.most_common(1)[0][0]])
        case ("how", "many", one, "plus", other, "?"):
            return str(by_kind[one] + by_kind[other])
        case ("how", "many", word, "?"):
            return str(sum(number for pair, number in pairs.items() if word in pair))
    raise AssertionError(words)


def test_answers_agree_with_a_recount():
    rng, seen = np.random.default_rng(5), Counter()
    for scene in draw_scenes("train", 60, clutter=0.0, rng=rng):
        for _ in range(10):
            question = ask(scene, rng)
            seen[question.form] += 1
            assert question.answer == recount(scene, question.words)
    assert set(seen) == set(FORMS)


def test_a_worked_scene():
    scene = scene_of("red circle", "red square", "", "blue circle", "red circle", "yellow cross")
    rng = np.random.default_rng(6)
    everything = ask(scene, rng, "all")
    assert (everything.chain, everything.answer, everything.depth) == (("3", "2", "0", "0", "=", "5"), "5", 1)
    assert ask(scene, rng, "most").answer == "circle"
    two_steps = {ask(scene, rng, "two-step") for _ in range(40)}
    assert {(question.words[2], question.answer) for question in two_steps} == {("red", "2"), ("blue", "1")}


def test_depth_is_the_number_of_counts_and_the_tie_is_not_asked():
    rng, tie = np.random.default_rng(7), scene_of("red circle", "blue square")
    assert {ask(tie, rng).form for _ in range(60)} == {"all", "kind", "colour", "sum"}
    scene = scene_of("red circle")
    depths = {form: ask(scene, rng, form).depth for form in FORMS}
    assert depths == {"all": 1, "kind": 1, "colour": 1, "sum": 2, "most": len(KINDS), "two-step": len(KINDS) + 1}


def test_every_demonstration_fits_and_careful_ones_are_right():
    rng, right = np.random.default_rng(8), []
    for scene in draw_scenes("train", 80, clutter=0.0, rng=rng):
        question = ask(scene, rng)
        assert len(question.words) <= QUESTION_LENGTH
        for guess in (False, True):
            words = demonstrate(question, guess=guess, rng=rng)
            assert len(words) <= RESPONSE_LENGTH
            response = decode(encode([words], RESPONSE_LENGTH)[0])
            assert well_formed(response)
            assert ("guess" in response) == guess
            if guess:
                right.append(boxed_answer(response) == question.answer)
            else:
                assert reward(response, question.answer) == 1.0
    assert 0.3 < np.mean(right) < 0.7


# --- the verifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"<think> 1 2 = 3 </think> \boxed{ 3 }", 1.0),
        (r"<think> </think> \boxed{ 3 }", 1.0),
        (r"<think> 1 2 = 3 </think> \boxed{ 4 }", 0.1),
        (r"<think> 1 2 = 3 </think> \boxed{ }", 0.1),
        (r"<think> 1 2 = 3 </think> \boxed{ 3 3 }", 0.1),
        (r"<think> 1 2 = 3 </think> \boxed{ 3 } \boxed{ 4 }", 0.1),
        (r"1 2 = 3 </think> \boxed{ 3 }", 0.9),
        (r"<think> 1 2 = 3 \boxed{ 3 }", 0.9),
        (r"\boxed{ 3 } <think> </think>", 0.9),
        (r"<think> 1 2 = 3 </think> 3", 0.0),
        (r"<think> 1 2 = 3 </think> \boxed{ 3", 0.0),
        (r"<think> 3 3 3", 0.0),
        ("", 0.0),
    ],
)
def test_reward(response, expected):
    assert reward(response, "3") == pytest.approx(expected)


def test_what_stands_behind_the_end_does_not_count():
    words = ("<think>", "=", "</think>", r"\boxed{", "2", "}", "<end>", r"\boxed{", "3", "}")
    assert boxed_answer(decode(encode([words], len(words))[0])) == "2"


# --- the encoder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"), [("stride8", (40, 16, 16)), ("stride16", (112, 8, 8)), ("stride32", (320, 4, 4))]
)
def test_layers(layer, shape):
    encoder = load_network(layer)
    images = [scene.image for scene in draw_scenes("train", 2, clutter=1.0, rng=np.random.default_rng(9))]
    features = encode_images(encoder, images)
    assert features.shape == (2, *shape)
    assert features.isfinite().all()
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert layer in LAYERS


def test_gallery(gallery):
    assert len(gallery.scenes) == 26
    assert gallery.patches.shape == (26, 16, 448)
    assert gallery.visual_entropy.shape == (26,)
    assert ((gallery.visual_entropy > 0) & (gallery.visual_entropy < np.log(63))).all()
    for scene, kinds, colors in zip(gallery.scenes, gallery.kinds, gallery.colors, strict=True):
        assert [["", *KINDS][kind] for kind in kinds] == list(scene.kinds)
        assert [["", *COLORS][color] for color in colors] == list(scene.colors)


def test_each_token_is_the_cell_of_its_label(gallery):
    """Repainting one cell changes its own token most, whichever cell it is."""
    encoder, image = load_network(), gallery.scenes[0].image
    for cell in (0, 3, 6, 13):
        row, column = divmod(cell, 4)
        repainted = image.copy()
        repainted[32 * row + 8 : 32 * row + 24, 32 * column + 8 : 32 * column + 24] = (255, 0, 255)
        scenes = [Scene(pixels, ("",) * 16, ("",) * 16, 0.0, "none") for pixels in (image, repainted)]
        before, after = build_gallery(scenes, 2, encoder, title="test").patches
        assert (after - before).norm(dim=-1).argmax() == cell


# --- the policy and the loop ----------------------------------------------------------------------------------------


def test_sampled_logprobs_are_those_of_the_loss(policy, gallery, prompts):
    rollouts = sample_responses(policy, gallery, prompts, GROUP, torch.Generator().manual_seed(0))
    for rows in torch.arange(6).split(4):
        again = response_logprobs(policy, gallery, prompts, rollouts, rows)
        torch.testing.assert_close(again, rollouts.logprobs[rows], atol=1e-4, rtol=0)
    assert (rollouts.logprobs[~rollouts.mask] == 0).all()
    assert (rollouts.tokens[~rollouts.mask] == TOKENS[PAD]).all()


def rollouts_of(tokens: torch.Tensor) -> Rollouts:
    mask = tokens != TOKENS[PAD]
    return Rollouts(tokens, torch.where(mask, -1.0, 0.0), mask)


def test_verify_reads_each_response_against_its_own_question(gallery):
    prompts = ask_about(gallery, np.arange(8), np.random.default_rng(10))
    careful = [demonstrate(question, guess=False, rng=np.random.default_rng(0)) for question in prompts.questions]
    tokens = encode(careful, RESPONSE_LENGTH)[:, None].repeat(1, 2, 1)
    right = rollouts_of(tokens)
    rewards, correct = verify(prompts, right)
    assert (rewards == 1).all()
    assert correct.all()
    swapped = rollouts_of(tokens.roll(1, dims=0))
    answers = [question.answer for question in prompts.questions]
    expected = torch.tensor([answers[row - 1] == answer for row, answer in enumerate(answers)])
    assert not expected.all()
    assert torch.equal(verify(prompts, swapped)[1][:, 0], expected)


def test_warm_up_learns(policy, gallery):
    losses = warm_up(policy, gallery, steps=40, guess_share=0.3, rng=np.random.default_rng(11), batch=16)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_clipped_loss_by_hand():
    """One token per response: ratio 1.5 is clipped to 1.2 where the advantage is positive, and only there."""
    logprobs = torch.tensor([[[1.5], [1.5]]]).log().requires_grad_()
    mask, advantages = torch.ones(1, 2, 1, dtype=torch.bool), torch.tensor([[2.0, -1.0]])
    loss = clipped_loss(logprobs, torch.zeros(1, 2, 1), mask, advantages, clip=0.2)
    assert loss.item() == pytest.approx(-(1.2 * 2.0 + 1.5 * -1.0) / 2)
    loss.backward()
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.0, 0.75])


def test_clipped_loss_pushes_towards_what_was_rewarded(policy, gallery, prompts):
    rollouts = sample_responses(policy, gallery, prompts, GROUP, torch.Generator().manual_seed(0))
    advantages = torch.zeros(6, GROUP)
    advantages[:, 0] = 1.0
    rows = torch.arange(6)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    loss = clipped_loss(
        response_logprobs(policy, gallery, prompts, rollouts, rows), rollouts.logprobs, rollouts.mask, advantages, 0.2
    )
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        moved = response_logprobs(policy, gallery, prompts, rollouts, rows) - rollouts.logprobs
    assert moved[:, 0].sum() > 0


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(arm, policy, gallery):
    warm_up(policy, gallery, steps=12, guess_share=0.3, rng=np.random.default_rng(12), batch=16)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    steps = list(
        train(
            policy,
            gallery,
            ARMS[arm],
            steps=2,
            prompts_per_step=16,
            rng=np.random.default_rng(0),
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert len(steps) == 2
    for step in steps:
        assert step.advantages.shape == step.rewards.shape == step.confidence.shape == (16, 8)
        assert step.advantages.isfinite().all()
        torch.testing.assert_close(step.confidence, step.rollouts.logprobs.sum(dim=-1))
        assert torch.equal(step.visual_entropy, gallery.visual_entropy[step.prompts.scenes])
    changed = [name for name, weight in policy.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) > 0.9 * len(before)


def test_durian_fills_its_confidence_buckets():
    rng = torch.Generator().manual_seed(0)
    for prompts, buckets in ((96, 12), (64, 8), (16, 2), (4, 1)):
        rewards = torch.rand(prompts, 8, generator=rng)
        scores = torch.rand(prompts, generator=rng)
        members = durian(rewards, scores, scores).confidence_bucket.bincount()
        assert len(members) == buckets
        assert members.min() >= min(prompts, 8)


def test_paired_interval_is_about_the_change():
    before = torch.rand(400, generator=torch.Generator().manual_seed(0))
    low, high = paired_interval(before, before + 0.1, seed=0)
    assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-6)
    noise = torch.rand(400, generator=torch.Generator().manual_seed(1)) - 0.5
    low, high = paired_interval(before, before + noise, seed=0)
    assert low < noise.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * noise.std().item() / 20, rel=0.1)


def test_a_miniature_run_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(folder: str, seed: int = 0) -> dict:
        sizes = "--images 64 --held-out-images 8 --warmup-steps 6 --steps 2 --prompts 16 --samples 2"
        threads = torch.get_num_threads()
        try:
            main([*sizes.split(), "--seed", str(seed), "--out", str(tmp_path / folder)])
        finally:
            torch.set_num_threads(threads)
        results = json.loads((tmp_path / folder / "results.json").read_text())
        del results["seconds"], results["settings"]["out"]
        return results

    one, two, other = run("one"), run("two"), run("other", seed=1)
    assert one == two
    assert one["steps"] != other["steps"]
    assert len(one["steps"]) == 2
    lines = (tmp_path / "one" / "rollouts.jsonl").read_text()
    assert lines == (tmp_path / "two" / "rollouts.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) == 2 * 16 * 8
    assert set(rows[0]) == {"step", "prompt", "reward", "visual_entropy", "confidence"}
    assert (tmp_path / "one" / "figure.png").stat().st_size > 50_000
    said = capsys.readouterr().out
    assert "held-out accuracy" in said
    assert said.splitlines()[-1].endswith(f"durian-adv report {tmp_path / 'other' / 'rollouts.jsonl'}")

    # the command that docs/report.md gives for this log
    (command,) = re.findall(r"bin/durian-adv (report out/demo/.*)", (ROOT / "docs/report.md").read_text())
    places = {"out/demo": str(tmp_path / "one"), "out/report": str(tmp_path / "report")}
    assert durian_adv(re.sub("|".join(places), lambda place: places[place.group()], command).split()) == 0
    assert "256 rollouts of" in (tmp_path / "report/report.html").read_text()


def test_guess_keeps_to_possible_answers():
    rng = np.random.default_rng(13)
    zero, kind = (Question("kind", (), (), answer, 1) for answer in ("0", "cross"))
    assert {demonstrate(zero, guess=True, rng=rng)[4] for _ in range(40)} == {"0", "1"}
    assert {demonstrate(kind, guess=True, rng=rng)[4] for _ in range(80)} == set(KINDS)
