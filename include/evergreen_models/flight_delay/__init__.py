"""Will a flight out of New York arrive more than 15 minutes late? Asked one hour before it should depart."""
