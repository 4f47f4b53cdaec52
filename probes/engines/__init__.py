"""Sampling engines: token ids in, token ids out."""
