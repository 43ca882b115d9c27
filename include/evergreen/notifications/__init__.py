"""Tells people what happens to models: at least once, by routes of the settings, and never in the way of a task.

Ledger, lake and jobs hold what has happened. Each route keeps a file with how far it has read them, and what it has not
sent yet (`evergreen.notifications.outbox`). A run of the DAG `evergreen.notifications` first writes what is new into
that file, in one step, and then sends what is in it (`evergreen.notifications.delivery`).
"""
