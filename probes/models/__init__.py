"""Models: loading a policy, opening a checkpoint, exporting for other engines."""
