"""`curate push`: a run as a dataset on the Hub."""
