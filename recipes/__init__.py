"""Turn probes into runs: GRPO recipes, their outcomes and the confirmation of tags."""
