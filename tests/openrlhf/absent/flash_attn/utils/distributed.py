from flash_attn import absent as all_gather  # noqa: F401
