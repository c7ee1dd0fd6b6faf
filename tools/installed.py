"""The start of the installed command: in a wheel this file is react_recipes/__init__.py, beside tools/ and catalog/.

`tools` is too common a name for a package in somebody's site-packages. So it lies one folder deeper, and is found there
by this command alone.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, str(Path(__file__).parent))
    from tools.cli import main

    main()
