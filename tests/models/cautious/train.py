from models.flight_delay.train import fit

__all__ = ["fit"]
