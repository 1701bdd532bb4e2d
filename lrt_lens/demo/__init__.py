"""The demo: the whole main job on the bundled models."""
