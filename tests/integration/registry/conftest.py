"""A home with a registry that has no models."""

from support.registries import home as home
