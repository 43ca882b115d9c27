"""Raw data: where it is delivered, what has arrived, and what must hold of it."""
