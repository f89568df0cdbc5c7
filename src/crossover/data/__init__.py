"""Text to shards and a manifest, and from shards to the batch of a step and slice."""
