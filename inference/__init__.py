"""The same model, computed faster, and exported."""
