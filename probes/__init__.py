"""Measure items under a policy: sampling, verifying, pass rates, gradients, similarity."""
