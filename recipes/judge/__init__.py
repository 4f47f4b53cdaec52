"""`curate judge`: the reasoning of correct rollouts, graded by a language model."""
