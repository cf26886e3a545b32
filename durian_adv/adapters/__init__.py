"""Adapters: a folder for each trainer. Each imports its own trainer, and nothing in the library imports an adapter."""
