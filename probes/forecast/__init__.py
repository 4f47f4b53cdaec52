"""The forecast of each item's pass rate after training, and the tag that follows."""
