"""What a data scientist declares about a model: its spec, its gates, and the loader of model folders."""
