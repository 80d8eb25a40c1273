"""`python -m parure`."""

from parure.cli import main

if __name__ == "__main__":
    main()
