"""Measurements behind the documentation's claims about speed and memory; see README.md.

python -m benchmarks.run
"""
