"""Linear probes: learnt, transferred, evaluated."""
