"""Commands that serve scenes and engines until they are stopped."""
