"""The training loop: steps, optimizer, schedules, precision."""
