"""Steering vectors: learnt, transferred, calibrated, evaluated."""
