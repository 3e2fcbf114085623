"""`treegrpo`, `python -m treegrpo_cli` -> the command line; signals are seen to before anything else is imported."""

from treegrpo_cli.signals import install


def main() -> None:
    """Run the command line and exit."""
    install()
    from treegrpo_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
