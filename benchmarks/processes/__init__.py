"""Trainings in 1, 2 and 4 processes held against each other, killed and gone on with, and what their masks cost."""
