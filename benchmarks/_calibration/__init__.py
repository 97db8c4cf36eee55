"""Simulation-based calibration: of a method's posteriors, and of its evidence over models."""
