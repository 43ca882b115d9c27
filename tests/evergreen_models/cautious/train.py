from evergreen_models.flight_delay.train import fit

__all__ = ["fit"]
