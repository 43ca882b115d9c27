"""Operators: the tasks that a function with `@task` is too small for."""
