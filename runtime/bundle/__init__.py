"""Engine bundles on disk: the folder, its manifest, and the typed records in it."""
