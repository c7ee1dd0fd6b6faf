"""Games, and what came of them."""
