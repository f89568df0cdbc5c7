"""Probes: training and held-out text turned into the numbers that signals read, without a trace on the training."""
