"""Commands that measure speed and accuracy, and that draw what was measured."""
