"""FlashAttention is not here, as it needs a GPU: only the names that OpenRLHF imports, and using one is an error."""


def absent(*_, **__):
    raise NotImplementedError("flash_attn is not installed in this environment")
