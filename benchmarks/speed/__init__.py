"""Seconds and bytes, against rivals or by size."""
