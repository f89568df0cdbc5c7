"""The one step and the one loop."""
