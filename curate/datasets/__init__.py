"""Datasets as they come: opening them, and reading prompts and gold answers from their rows."""
