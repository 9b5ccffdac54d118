"""The demo on a machine of the hub: two cores, no GPU, visitors from anywhere."""

import sys

from ttsnap.cli import main

HERE = ["--host", "0.0.0.0", "--port", "7860"]  # where the hub looks for a page
LIMITS = ["--max-budget", "400", "--max-seconds", "60", "--queue-size", "8"]

if __name__ == "__main__":
    sys.exit(main(["demo", *HERE, *LIMITS]))
