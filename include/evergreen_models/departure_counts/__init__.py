"""`departure_counts`: how many flights leave each airport of New York in the next hour, from what was known an hour before."""
