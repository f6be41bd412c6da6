"""``python -m fastack``."""

from fastack.cli import main

if __name__ == "__main__":
    main()
