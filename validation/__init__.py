"""Frames in, verdicts out: what is wrong with input, vectors and snapshots. Never imports torch, models or jobs."""
