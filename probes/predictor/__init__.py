"""The predictor file of `curate calibrate`, and what it goes by."""
