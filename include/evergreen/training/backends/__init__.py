"""Backends that run attempts at a training job: a process on this machine, or a pod of a cluster."""
