"""Artefacts that a stitch carries from one model to another."""
