"""What each task reads and writes, as OpenLineage describes it: datasets with schema, version and counts, test results.

Each function returns the `TaskLineage` of a task from what the task has handed over, and from what is published or
recorded by then: manifests, reports of expectations, the ledger. It reads no rows. Airflow's provider makes it part of
the event that the task is complete; nothing here is imported where no lineage is sent.

A description is about what was published. A partition that another run has replaced since is left out, and the dataset
then has no version: no event says of newer bytes that the task has read or written them.
"""
