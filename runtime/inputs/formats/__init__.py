"""The formats that views come in, each a module, and the table of them: what is added here is read everywhere."""
