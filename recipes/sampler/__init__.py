"""A sampler in the training loop: items whose rewards are expected to differ, learned as it goes.

`items` is the sampler itself, which knows no trainer; `trl` and `verl` put it into theirs.
"""
