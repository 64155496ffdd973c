"""How much memory a call takes: modelled, and held against what is free."""
