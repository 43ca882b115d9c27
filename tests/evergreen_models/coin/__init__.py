"""A minimal second model, with the features and the trainer of flight_delay."""
