"""`curate score`: final pass rates of a run's items under checkpoints of a training elsewhere."""
