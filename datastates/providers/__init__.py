"""State providers."""
