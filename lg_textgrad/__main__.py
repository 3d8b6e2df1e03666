"""`python -m lg_textgrad` is the command line."""

import sys

from lg_textgrad.cli import main

sys.exit(main())
