"""``python -m durian_adv``: the command ``durian-adv``."""

import sys

from durian_adv.cli import main

sys.exit(main())
