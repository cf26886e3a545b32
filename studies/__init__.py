"""Experiments that answer a question, each with its records and the page they make."""
