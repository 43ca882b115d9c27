"""One folder per model; docs/add-a-model.md tells how to add one."""
