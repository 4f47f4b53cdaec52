"""`curate augment`: new problems written for items of a run."""
