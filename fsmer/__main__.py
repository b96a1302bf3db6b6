"""``python -m fsmer`` is the command ``fsmer``."""

from fsmer.cli.app import main

if __name__ == "__main__":
    main()
