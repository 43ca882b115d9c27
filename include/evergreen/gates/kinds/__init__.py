"""One module for each kind of gate: `compute` takes the gate and the evidence, and gives the record."""
