"""`python -m stepway`."""

from stepway.cli.main import main

main()
