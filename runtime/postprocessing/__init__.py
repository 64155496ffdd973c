"""From the network's raw maps to what ``infer`` returns."""
