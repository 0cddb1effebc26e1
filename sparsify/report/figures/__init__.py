"""Figures of runs, each a function that returns an Altair chart."""
