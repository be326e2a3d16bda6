"""What the commands share: flags, launching and resuming runs, reports and charts."""
