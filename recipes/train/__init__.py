"""Training a policy by a recipe: GRPO and SFT on items of a run."""
