"""Tags against the outcomes of GRPO: the SmolLM2 studies, the payoff and the interventions."""
