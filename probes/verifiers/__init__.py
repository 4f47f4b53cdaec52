"""Verifiers: what a completion is worth against a gold answer, and the processes that judge."""
