"""``python -m fsmer`` is the command ``fsmer``."""

from fsmer.cli import main

if __name__ == "__main__":
    main()
