"""Several machines: Ray workers, and the shards of a run."""
