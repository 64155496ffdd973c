"""``python -m mapengine``: the command line."""

from mapengine.cli import main

if __name__ == "__main__":
    main()
