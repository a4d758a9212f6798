"""Remove units from a network: groups, budget, plan, cut, and the verification of each cut."""
