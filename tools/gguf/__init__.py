"""A base model and an adapter as files: found, checked, merged, converted to GGUF, quantised, measured."""
