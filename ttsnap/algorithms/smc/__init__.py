"""Sequential Monte Carlo: particles with weights (FK steering, DAS), their targets, and how they
are resampled."""
