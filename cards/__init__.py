"""Tell what a run found: facts, summaries, reports and dataset cards."""
