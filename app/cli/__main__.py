"""`python -m app.cli` is `planwave`."""

from app.cli import main

if __name__ == "__main__":
    main()
