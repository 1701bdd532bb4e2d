"""Intervals, jackknife, correlations, classification."""
