"""Activations on disk: `ActivationCache`, for maps and scores that need more than moments."""
