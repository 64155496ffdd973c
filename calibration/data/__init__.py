"""Views to calibrate and to try engines with: recorded, rendered, and mixed into cases."""
