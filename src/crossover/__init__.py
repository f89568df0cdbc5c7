"""Crossover trains the best language model that a limited text allows."""

__version__ = "0.1.0"
