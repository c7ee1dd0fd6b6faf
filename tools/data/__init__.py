"""Trajectories: read in any format, converted, checked, split, counted."""
