"""Lift: how far training moves the log odds of each item."""
