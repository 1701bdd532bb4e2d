"""Cross-moments of two models: harvest, sums, files, plans, checkpoints and activation caches."""
