"""Runs as Python functions: each module holds one function of its own name that returns a frozen `TrainConfig`."""
