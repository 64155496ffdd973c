"""The commands, each a module that bears its name, in folders of what they are for."""
