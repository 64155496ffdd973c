"""A scene for looking at: thinned, in levels of detail, in few bytes, and in a page of its own."""
