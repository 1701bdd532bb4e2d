"""Concepts, one row a text: maps between them, and their evaluation."""
