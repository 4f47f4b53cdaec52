"""`curate forecast`: a run tagged anew by a lift from gradients, a pilot or a checkpoint."""
