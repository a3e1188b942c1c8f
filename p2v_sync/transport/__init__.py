"""Ways to reach a receiver: a child process, ssh, raw TCP."""
