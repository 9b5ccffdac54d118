"""python -m ttsnap"""

import sys

from ttsnap.cli import main

sys.exit(main())
