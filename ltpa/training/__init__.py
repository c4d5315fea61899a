"""Training: the loop, what happens around it, and the run folder."""
