"""A recipe to an adapter: checked before the first GPU second, then Axolotl."""
