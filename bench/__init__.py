"""A script for each claim of speed, memory and size; BENCHMARKS.md is drawn from what they write."""
