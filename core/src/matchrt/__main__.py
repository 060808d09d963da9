"""`python -m matchrt`."""

from matchrt.cli import main

if __name__ == "__main__":
    main()
