"""Rollouts as trainers and evaluations write them: a file a format, read as `LoggedRollout`."""
