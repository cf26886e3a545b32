"""Rollouts of the released OpenRLHF: its command line, its samples and experience maker, without vLLM's engines."""

from __future__ import annotations

import argparse
import functools
import runpy
from types import SimpleNamespace

import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils import config

PAD = 0
KEYS = ("advantages", "returns")


class Parsed(BaseException):
    """Carries the parser out of OpenRLHF's main program."""


@functools.cache
def parser():
    """OpenRLHF's own."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self):
        raise Parsed(self)

    argparse.ArgumentParser.parse_args = stop
    try:
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    finally:
        argparse.ArgumentParser.parse_args = parse


@functools.cache
def _arguments(words):
    return config.hierarchize(parser().parse_args(words))


def arguments(samples=4, prompts=6, **options):
    """What OpenRLHF's own parser makes of options; ``algo__kl__estimator="k3"`` is ``--algo.kl.estimator k3``."""
    words = ["--algo.advantage.estimator", "group_norm", "--rollout.n_samples_per_prompt", str(samples)]
    words += ["--rollout.batch_size", str(prompts), "--data.max_len", "96", "--actor.num_gpus_per_node", "1"]
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("__", "."), *map(str, values)]
    args = _arguments(tuple(words))
    args.local_rank = -1  # set by the main program for its launcher
    return args


def maker(kind, args, kl=0.0, group=None):
    """An experience maker, OpenRLHF's own or ours."""
    tokenizer = SimpleNamespace(pad_token_id=PAD)
    return kind(group, None, None, None, FixedKLController(kl), SimpleNamespace(args=args), tokenizer)


def response(prompt, reward, length, seed=0, prompt_length=5, ranges=None, **more):
    """What a vLLM engine of OpenRLHF answers: one rollout."""
    tokens = torch.randint(1, 99, (prompt_length + length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {
        "prompt": prompt,
        "label": "",
        "images": None,
        "mm_train_inputs": None,
        "reward": reward,
        "scores": reward,
        "observation_tokens": tokens,
        "action_ranges": ranges or [(prompt_length, prompt_length + length)],
        "rollout_log_probs": None,
        "truncated": False,
        "extra_logs": {},
        **more,
    }


def rollouts(prompts=6, samples=4, seed=0, rewards=None, **more):
    """Answers to some prompts, ``samples`` each, of many lengths; ``more`` may have functions of the rollout."""
    generator = torch.Generator().manual_seed(seed)
    if rewards is None:
        rewards = torch.randint(0, 3, (prompts * samples,), generator=generator).double().div(2).tolist()
    out = []
    for i, reward in enumerate(rewards):
        length = int(torch.randint(1, 30, (), generator=generator))
        own = {name: value(i) if callable(value) else value for name, value in more.items()}
        own = {"prompt": f"prompt {i // samples}", **own}
        out.append(response(reward=reward, length=length, seed=1000 * seed + i, **own))
    return out


def samples_of(responses, args):
    """The samples that OpenRLHF makes of answers, one Experience each."""
    generator = SamplesGenerator(SimpleNamespace(args=args), None, None, None, None)
    return [generator._process_response_into_experience(one, max_len=args.data.max_len) for one in responses]


def experiences(made_by, responses):
    """Split into batches by the maker's own method, and given what its models would add."""
    batches = made_by.split_rollout_samples(samples_of(responses, made_by.args))
    for batch in batches:
        # of a token, so that no order and no padding changes them
        ids = batch.sequences[:, 1:].double()
        batch.action_log_probs = -(1.1 + torch.sin(ids)).float() * batch.action_mask
        batch.kl = (0.3 * torch.cos(3 * ids)).float() * batch.action_mask
    return batches


def by_rollout(batches, name):
    """A field of all rollouts in the order in which they were made, without padding: a list of rows."""
    rows = {}
    for batch in batches:
        values = getattr(batch, name)
        for i, number in enumerate(batch.index):
            length = int(batch.attention_mask[i].sum()) - 1
            rows[number] = values[i] if values.ndim == 1 else values[i, :length]
    return [rows[i] for i in range(len(rows))]


def advantages(kind, responses, args, kl=0.0):
    """The batches after ``compute_advantages_and_returns``."""
    made_by = maker(kind, args, kl)
    return made_by.compute_advantages_and_returns(experiences(made_by, responses))


OWN = RemoteExperienceMaker
