"""Pass rates with their intervals, and how many rollouts an item gets."""
