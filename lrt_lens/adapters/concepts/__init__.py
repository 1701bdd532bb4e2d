"""Concept maps, fitted on one row per text: fitting, transfer of vectors and evaluation."""
