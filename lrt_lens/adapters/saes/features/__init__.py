"""Single SAE features before and after transfer; the entry point is in `_evaluate`."""
