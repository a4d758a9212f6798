"""Remove units from a network: groups, budget, plan, cut, and the proof that the cut is right."""
