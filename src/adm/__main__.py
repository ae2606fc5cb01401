"""python -m adm: the command `adm`."""

import sys

from adm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
