"""Rollouts that a run kept, scored under another policy."""
