"""`curate select`: the items that are worth most, for so many items or rollouts."""
