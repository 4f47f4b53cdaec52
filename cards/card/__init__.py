"""`curate card`: the dataset card of a run."""
