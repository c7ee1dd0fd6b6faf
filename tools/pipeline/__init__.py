"""The stages in their order, each done once: what a stage was made from stands in run.json beside its seconds."""
