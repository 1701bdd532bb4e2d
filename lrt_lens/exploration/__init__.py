"""Turning a vector up and down by hand, in a notebook: what is compared (`state`) and the widget
over it (`widget`).
"""
