"""A second model, as small as they get: the features of flight_delay, the trainer of flight_delay."""
