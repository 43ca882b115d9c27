"""Triggers: raw days that arrive, DAG runs that finish, pods that end."""
