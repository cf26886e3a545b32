from vllm import absent as random_uuid  # noqa: F401
