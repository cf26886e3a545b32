"""Reinforcement learning with verifiable rewards, in miniature: real images, one command, a few minutes.

Read in this order: scenes, questions, language, encoder, policy, warmup, rollout, training.
"""
