"""Runs on disk, and checkpoints of other programs: one file per format."""
