"""``python -m malora_cli`` is the ``malora`` command."""

from malora_cli.cli import main

if __name__ == "__main__":
    main()
