"""Plotly figures: functions of tidy tables."""
