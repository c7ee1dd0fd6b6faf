"""`python -m tools`."""

import sys

try:
    from tools.cli import main
except KeyboardInterrupt:  # Ctrl-C while libraries are imported
    print("react-recipes: stopped", file=sys.stderr)
    sys.exit(130)

main()
