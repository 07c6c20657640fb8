"""Entry point of `python -m analysis`; the commands and their options are in cli.py."""

import sys

from .cli import main

sys.exit(main())
