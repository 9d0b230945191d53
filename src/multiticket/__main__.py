"""``python -m multiticket``: the command line."""

from multiticket.cli import main

if __name__ == "__main__":
    main()
