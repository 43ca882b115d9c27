"""Operators: training, its pod, and the approval of a person."""
