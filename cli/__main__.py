"""``python -m mapengine.cli``."""

from .program import main

main()
