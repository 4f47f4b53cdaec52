"""`curate join`: several models on one dataset, in one file."""
