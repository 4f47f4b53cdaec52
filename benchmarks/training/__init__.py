"""Compact training of the policies of grown worlds, seconds a training."""
