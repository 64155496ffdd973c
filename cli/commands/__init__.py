"""The commands, each a module that bears its name."""
