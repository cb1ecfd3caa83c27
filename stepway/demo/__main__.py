"""`python -m stepway.demo`, the same as `stepway demo`."""

import sys

from stepway.cli.main import main

sys.argv[1:1] = ["demo"]
main()
