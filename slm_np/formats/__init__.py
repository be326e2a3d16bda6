"""Runs and foreign checkpoints on disk, one file per format."""
