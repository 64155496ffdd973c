"""An app in the browser: images or a video in, a scene to look at out, by an engine, for several people in turn."""
