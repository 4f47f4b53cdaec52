"""Estimators against their rivals: the sampling plan, the similarity, gradients of LoRA."""
