"""Linear probes: fitting, transfer and evaluation."""
