"""The household: a task world in ALFWorld's text, an expert that plays it, and the episodes that come of it."""
