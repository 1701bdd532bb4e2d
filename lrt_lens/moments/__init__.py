"""Cross-moments: harvesting, the sums, files, plans, caches."""
