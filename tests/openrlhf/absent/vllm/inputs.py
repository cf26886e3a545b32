from vllm import absent as TokensPrompt  # noqa: F401
