"""Steering vectors: learning, transfer, calibration and evaluation."""
