"""Which files may be a model, how they are loaded, and what they predict."""
