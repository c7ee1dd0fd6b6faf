"""Recipes: what fits a device, read, written from the catalog, listed."""
