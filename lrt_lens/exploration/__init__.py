"""Steering by hand in a notebook: the comparison of arms (`_state`) and its widget (`_widget`)."""
