"""Worlds whose truth is known: bandits, planted skills, and models grown with failures."""
