"""A page over the commands: choose, check, train, watch and try a model, each button with the command that does it."""
