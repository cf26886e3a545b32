"""verl's dataset, with images opened by PIL alone: verl's own way needs torchvision."""

from verl.utils.dataset.rl_dataset import RLHFDataset


class Pictures(RLHFDataset):
    @classmethod
    def _process_multi_modal_info(cls, messages, image_patch_size, config):
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        images = [part["image"].convert("RGB") for part in parts if part["type"] == "image"]
        return images or None, None, None
