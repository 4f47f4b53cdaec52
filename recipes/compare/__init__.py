"""`curate compare`: two probes of the same items, before and after training."""
