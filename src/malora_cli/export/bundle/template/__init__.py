"""The Python files that travel in a bundle, as they are for a Llama; for other architectures the names are replaced."""
