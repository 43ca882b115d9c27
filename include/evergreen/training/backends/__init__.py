"""Where a training attempt runs: a process of this machine, or a pod of a cluster."""
