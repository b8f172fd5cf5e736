"""Measurements: one script per question; README.md holds the answers."""
