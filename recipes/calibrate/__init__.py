"""`curate calibrate`: the forecast and a predictor fitted to what was confirmed."""
