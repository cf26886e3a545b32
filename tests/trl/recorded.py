"""A trainer that keeps what went in and what came out of every batch of completions, and TRL's own advantages."""

from __future__ import annotations

import ast
import inspect
import textwrap

import tiny
import torch
from trl import GRPOTrainer

from durian_adv.adapters.trl import DurianGRPOConfig, DurianGRPOTrainer

# what processors of transformers give beside what TRL knows: of videos, of sound, of tiles and crops
INPUTS_OF_OTHERS = [
    *("audio_features", "input_features", "feature_attention_mask", "aspect_ratio_ids", "aspect_ratio_mask"),
    *("cross_attention_mask", "num_crops", "patch_attention_mask", "grid_hws", "crop_image_mask"),
]


def names_of_a_batch(method):
    """The names that are written into ``output`` in the source of a method."""
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method)))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            written, key = node.targets[0].value, node.targets[0].slice
            if getattr(written, "id", None) == "output" and isinstance(key, ast.Constant):
                names.add(key.value)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "output":
            names |= {key.value for key in getattr(node.value, "keys", ()) if isinstance(key, ast.Constant)}
    return names


class BetweenTRLAndOurs(GRPOTrainer):
    """Keeps what TRL computed, before it is replaced."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.of_trl = output["advantages"].clone()
        return output


class Recorded(DurianGRPOTrainer, BetweenTRLAndOurs):
    """Keeps one dict per batch in ``batches``."""

    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def _scores(self, *args):
        self.found = super()._scores(*args)
        return self.found

    def _generate_and_score_completions(self, inputs):
        forwards = []
        original = self._get_per_token_logps_and_entropies
        self._get_per_token_logps_and_entropies = lambda *a, **k: forwards.append(k) or original(*a, **k)
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            del self._get_per_token_logps_and_entropies
        per_func = self._rewards_per_func.clone()
        group = self.num_generations if self.model.training else self.num_generations_eval
        scores, _ = self.found
        entropy, confidence = (scores.get(name) for name in ("visual_entropy", "confidence"))
        # as durian_components takes them: one per prompt, one per completion
        entropy = None if entropy is None or entropy.isnan().all() else entropy.view(-1, group)[:, 0]
        confidence = None if confidence is None else confidence.view(-1, group)
        self.batches.append(
            {
                "inputs": inputs,
                "per_func": per_func,
                "entropy": entropy,
                "confidence": confidence,
                "valid": scores["mask"].view(-1, group),
                "category": scores.get("category"),
                "output": dict(output),
                "of_trl": self.of_trl,
                "table": list(self._logs["advantages"]),
                "training": self.model.training,
                "forwards": len(forwards),
                "metrics": {
                    name: values[-1]
                    for name, values in self._metrics["train" if self.model.training else "eval"].items()
                    if name.startswith("durian/")
                },
            }
        )
        return output


def options(model, kind=DurianGRPOConfig, **more):
    """Options of a short run: 4 prompts x 4 completions of 8 tokens per step, generated in one batch."""
    return kind(
        **{
            "output_dir": "out",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "durian_num_confidence_buckets": 2,
            "durian_entropy_quantiles": [0.5],
            "generation_kwargs": tiny.no_image_tokens(model),
            **more,
        }
    )


def make(family="qwen25vl", *, reward_funcs=tiny.letters, train_dataset=None, trainer=Recorded, arguments=None, **more):
    """A trainer on a tiny model; ``more`` are options of its configuration, ``arguments`` those of the trainer."""
    build = family if callable(family) else lambda: tiny.build(family)
    model, processor = build()
    if train_dataset is None:
        train_dataset = tiny.dataset(8, 0 if family == "qwen_text" else 1)
    return trainer(
        model=model,
        reward_funcs=reward_funcs,
        args=options(model, **more),
        train_dataset=train_dataset,
        processing_class=processor,
        **(arguments or {}),
    )


def moved(trainer, run):
    """Run something; return which parameters it moved."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    run()
    return [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]


def scripted(texts, *, masks=None, logprobs=None):
    """A rollout function whose completions are fixed: those of ``texts[number of the prompt]`` in turn.

    ``masks(number, text, tokens)`` says which tokens the policy wrote, ``logprobs``, called with the same, what a
    sampler reports.
    """

    def roll_out(prompts, trainer):
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        start = trainer.accelerator.process_index * len(prompts)
        group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        numbers = [question(prompt) for prompt in prompts]
        chosen = [texts[n][(start + i) % group % len(texts[n])] for i, n in enumerate(numbers)]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in chosen]
        rows = list(zip(numbers, chosen, map(len, ids), strict=True))
        out = {"prompt_ids": [_prompt_ids(prompt, trainer, tokenizer) for prompt in prompts], "completion_ids": ids}
        out["logprobs"] = None if logprobs is None else [logprobs(*row) for row in rows]
        return out if masks is None else {**out, "env_mask": [masks(*row) for row in rows]}

    return roll_out


def question(prompt):
    """The number in a prompt of ``tiny.dataset``."""
    content = prompt[-1]["content"]
    text = content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")
    return int(text.rsplit(" ", 1)[1].rstrip("?"))


def _prompt_ids(prompt, trainer, tokenizer):
    text = trainer.processing_class.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    content = prompt[-1]["content"]
    images = [] if isinstance(content, str) else [part["image"] for part in content if part["type"] == "image"]
    if not images:
        return tokenizer(text)["input_ids"]
    return trainer.processing_class(images=[images], text=[text])["input_ids"][0]
