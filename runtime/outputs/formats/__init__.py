"""The formats that scenes are saved in, and the table of them: what is added here is offered everywhere."""
