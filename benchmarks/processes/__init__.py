"""Training in 1, 2 and 4 processes: compared, killed and resumed, and the costs of masks."""
