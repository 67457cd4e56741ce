"""A marketplace with known truth: who likes what, what is shown to whom, and what comes of it (docs/world.md)."""
