"""Rollout logs, read step by step."""
