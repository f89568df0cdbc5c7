"""The parts of a report's page: figures, words, and the template that they fill."""
