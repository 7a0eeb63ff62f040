"""`python -m easq` is the console script."""

from easq.cli.main import main

if __name__ == "__main__":
    main()
