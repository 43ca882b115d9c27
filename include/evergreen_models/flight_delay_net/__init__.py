"""The question of `flight_delay`, answered by a neural network: learned in batches, on a CPU or on GPUs."""
