"""How well forecasts rank items: worlds that are grown, probed and trained, and SmolLM2's items."""
