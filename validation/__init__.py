"""Frames in, verdicts out: what is wrong with input, vectors and snapshots. Imports contracts, never torch, models or jobs."""
