"""``python -m mapengine.cli``."""

from .app import main

main()
