"""What servers of pages share: HTTP for this machine, and a scene that is looked at in a page."""
