"""Generation, autoregressive and by unmasking."""
