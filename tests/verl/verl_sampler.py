"""Rollouts by a Hugging Face model in a Ray actor of its own, behind verl's interfaces for rollout servers."""

import ray
import tiny
import torch
import transformers
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


@ray.remote(num_cpus=0.1)
class Server:
    def __init__(self, path, length):
        torch.set_num_threads(1)
        self.config = transformers.AutoConfig.from_pretrained(path)
        self.has_images = hasattr(self.config, "vision_config")
        kind = transformers.AutoModelForImageTextToText if self.has_images else transformers.AutoModelForCausalLM
        self.model = kind.from_config(self.config, dtype=torch.float32).eval()
        self.eos = transformers.AutoTokenizer.from_pretrained(path).eos_token_id
        self.images = tiny.ImageProcessor.from_pretrained(path) if self.has_images else None
        self.length, self.step = length, 0

    def load(self, state, step):
        self.model.load_state_dict(state)
        self.step = step or 0

    @torch.no_grad()
    def generate(self, request_id, prompt_ids, sampling_params, image_data=None, video_data=None, **_):
        ids = torch.tensor([list(prompt_ids)])
        inputs = {"input_ids": ids}
        if image_data:
            inputs |= self.images(images=list(image_data), return_tensors="pt")
            inputs["mm_token_type_ids"] = (ids == self.config.image_token_id).long()
        temperature = sampling_params.get("temperature", 1.0)
        tokens, logprobs = [], []
        cache = None
        for _ in range(min(self.length, sampling_params.get("max_tokens", self.length))):
            out = self.model(**inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[0, -1] / (temperature or 1.0)
            for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
                if hasattr(self.config, name):
                    logits[getattr(self.config, name)] = -torch.inf  # a random model must not ask for more images
            found = logits.log_softmax(-1)
            token = int(found.exp().multinomial(1)) if temperature else int(found.argmax())
            tokens.append(token)
            logprobs.append(float(found[token]))
            if token == self.eos:
                break
            inputs = {"input_ids": torch.tensor([[token]])}
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs,
            stop_reason="completed",
            extra_fields={"global_steps": self.step, "min_global_steps": self.step, "max_global_steps": self.step},
        )

    def nothing(self, *_, **__):
        pass

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class Replica(RolloutReplica):
    async def launch_servers(self):
        name = f"sampler_{self.replica_rank}"
        self._server_handle = Server.options(name=name).remote(self.model_config.path, self.config.response_length)
        self._server_address = name
        self.servers = [self._server_handle]


class Adapter(BaseRollout):
    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **_):
        state = {name: _whole(weight).detach().float().cpu().clone() for name, weight in weights}
        await ray.get_actor("sampler_0").load.remote(state, global_steps)


def _whole(weight):
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
