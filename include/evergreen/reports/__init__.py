"""Reports for people: the gate report of a verdict, and the report of a backtest.

Each is one HTML file. Evidence that is missing or invalid is named with its problem. Equal inputs give equal bytes.
"""
