"""Activations on disk: `ActivationCache`, for what second moments do not know."""
