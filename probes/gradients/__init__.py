"""Gradients of rollouts through a LoRA adapter, and how well those of items agree."""
