"""What the documentation claims about speed and memory, measured: ``python -m benchmarks.run``; see
README.md.
"""
