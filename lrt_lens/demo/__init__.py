"""The demo: stitch, transfer and evaluation on the bundled models."""
