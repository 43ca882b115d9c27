"""What the benchmarks share: the CPU time and the memory of a whole stack."""
