"""How much memory a call takes: measured, modelled, and held against what is free."""
