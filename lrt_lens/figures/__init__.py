"""Plotly figures: functions of tidy tables that compute no statistics."""
