"""Who becomes champion: the rules, and the service that records each change in the ledger."""
