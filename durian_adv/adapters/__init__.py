"""Adapters: Durian inside trainers. Each file imports its own trainer, and nothing here is imported by the library."""
