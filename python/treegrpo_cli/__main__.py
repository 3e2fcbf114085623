"""`python -m treegrpo_cli` -> the command line."""

from treegrpo_cli.cli.app import main

if __name__ == "__main__":
    main()
