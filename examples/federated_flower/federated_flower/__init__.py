"""Windlass's trainer as a Flower app."""
