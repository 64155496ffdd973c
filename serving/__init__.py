"""Programs that serve scenes and engines: to people in a browser, and to other programs."""
