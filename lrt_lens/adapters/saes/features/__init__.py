"""What becomes of single SAE features when they are carried to another model; start reading in
``evaluate.py``.
"""
