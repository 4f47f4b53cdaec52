"""Run folders made by hand: `made_run`, and the runs that commands other than `tag` read."""
