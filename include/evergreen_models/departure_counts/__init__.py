"""Predicts, an hour ahead, how many flights leave each airport of New York in an hour."""
