"""Clients of REST APIs."""
