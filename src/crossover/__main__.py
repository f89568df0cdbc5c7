"""`python -m crossover` is the command line."""

from crossover.cli import main

if __name__ == "__main__":
    main()
